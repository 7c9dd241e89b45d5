async def answer(question):
    from anthropic import AsyncAnthropic

    return await AsyncAnthropic().messages.create(model="claude-sonnet-4-5", max_tokens=100, messages=[question])
