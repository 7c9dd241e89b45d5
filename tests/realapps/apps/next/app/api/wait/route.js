export const dynamic = "force-dynamic";

export async function GET(request) {
  const seconds = Number(request.nextUrl.searchParams.get("seconds"));
  await new Promise((done) => setTimeout(done, seconds * 1000));
  return Response.json({ waited: seconds });
}
