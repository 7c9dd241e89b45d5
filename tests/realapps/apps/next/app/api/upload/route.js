import { createHash } from "node:crypto";

export async function POST(request) {
  const file = (await request.formData()).get("file");
  const data = Buffer.from(await file.arrayBuffer());
  return Response.json({ name: file.name, size: data.length, sha256: createHash("sha256").update(data).digest("hex") });
}
