import { OpenAI } from "openai";

export async function POST(request) {
  const { text } = await request.json();
  const parts = await new OpenAI().chat.completions.create({
    model: "gpt-4o-mini",
    messages: [{ role: "user", content: text }],
    stream: true,
  });
  const bytes = new TextEncoder();
  const stream = new ReadableStream({
    async start(out) {
      try {
        for await (const part of parts) out.enqueue(bytes.encode(part.choices[0]?.delta?.content || ""));
        out.close();
      } catch (error) {
        out.error(error);
      }
    },
  });
  return new Response(stream, { headers: { "Content-Type": "text/plain" } });
}
