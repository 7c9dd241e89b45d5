import chainlit as cl
from openai import AsyncOpenAI

vendor = AsyncOpenAI()


@cl.on_chat_start
async def begin():
    await cl.Message("Ask me anything").send()


@cl.on_message
async def answer(message: cl.Message):
    said = cl.Message("")
    stream = await vendor.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": message.content}], stream=True
    )
    async for part in stream:
        if part.choices and part.choices[0].delta.content:
            await said.stream_token(part.choices[0].delta.content)
    await said.send()
