// An app that answers `ok`, and at /boom ends the connection after a 500; each connection serves 50 requests.
const server = require("http").createServer((request, response) => {
  request.resume().on("end", () => {
    if (request.url === "/boom") {
      response.writeHead(500, { "Content-Length": 4 }).end("boom", () => request.socket.destroy());
    } else {
      response.end("ok");
    }
  });
});
server.maxRequestsPerSocket = 50;
server.listen(Number(process.env.PORT), "127.0.0.1");
