const http = require("http");

const server = http.createServer((request, response) => {
  const url = new URL(request.url, "http://app");
  if (url.pathname === "/json") {
    let body = "";
    request.on("data", (data) => { body += data; });
    request.on("end", () => {
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({
        got: JSON.parse(body), scheme: request.headers["x-forwarded-proto"], host: request.headers.host,
      }));
    });
  } else if (url.pathname === "/big") {
    let left = Number(url.searchParams.get("size"));
    const piece = Buffer.alloc(65536, "x");
    const more = () => {
      while (left > 0) {
        left -= piece.length;
        if (!response.write(piece)) return response.once("drain", more);
      }
      response.end();
    };
    more();
  } else {
    response.end("hello from Node");
  }
});
server.listen(process.env.PORT || 3000, "127.0.0.1");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
