export const dynamic = "force-dynamic";

export function GET() {
  const text = new TextEncoder();
  const stream = new ReadableStream({
    async start(out) {
      for (let number = 0; number < 5; number++) {
        out.enqueue(text.encode(`id: ${number}\ndata: event ${number}\n\n`));
        await new Promise((done) => setTimeout(done, 200));
      }
      out.close();
    },
  });
  return new Response(stream, { headers: { "Content-Type": "text/event-stream" } });
}
