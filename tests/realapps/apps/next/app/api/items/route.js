export const dynamic = "force-dynamic";

export function GET() {
  return Response.json(Array.from({ length: 50 }, (_, number) => ({ id: number, name: `item ${number}` })));
}
