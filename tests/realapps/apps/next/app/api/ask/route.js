import { OpenAI } from "openai";

export async function POST(request) {
  const { text } = await request.json();
  const said = await new OpenAI().chat.completions.create({
    model: "gpt-4o-mini",
    messages: [{ role: "user", content: text }],
  });
  return Response.json({ answer: said.choices[0].message.content });
}
