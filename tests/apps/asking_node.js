// A server that passes one header on: `node asking_node.js`. /none does not.
const http = require("http");

http.createServer(async (request, response) => {
  const headers = { "Content-Type": "application/json" };
  if (request.url !== "/none") headers["X-Outrigger-Request"] = request.headers["x-outrigger-request"];
  const user = request.url === "/none" ? "unattributed" : request.headers["x-user"];
  const body = JSON.stringify({ model: `${user}~node`, messages: [{ role: "user", content: "hello" }] });
  const answer = await fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, { method: "POST", headers, body });
  response.statusCode = answer.status;
  response.end(await answer.text());
}).listen(process.env.PORT, "127.0.0.1");
