from fastapi import FastAPI

app = FastAPI()


@app.get("/complete/{text}")
async def complete(text: str):
    import litellm

    return await litellm.acompletion(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])
