// A small Express app as users write them, kept up by nodemon.
const crypto = require("node:crypto");
const http = require("node:http");
const busboy = require("busboy");
const express = require("express");
const { OpenAI } = require("openai");
const { WebSocketServer } = require("ws");

const app = express();
const vendor = new OpenAI();
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

app.use(express.static("public"));
app.use(express.json());

app.get("/api/items", (request, response) => {
  const first = Number(request.query.first || 0);
  response.json(Array.from({ length: 50 }, (_, number) => ({ id: first + number, name: `item ${first + number}` })));
});

app.post("/api/echo", (request, response) => response.json(request.body));

app.post("/api/upload", (request, response) => {
  const form = busboy({ headers: request.headers });
  form.on("file", (field, file, info) => {
    const digest = crypto.createHash("sha256");
    let size = 0;
    file.on("data", (piece) => {
      digest.update(piece);
      size += piece.length;
    });
    file.on("end", () => response.json({ name: info.filename, size, sha256: digest.digest("hex") }));
  });
  request.pipe(form);
});

app.get("/api/events", async (request, response) => {
  response.set("Content-Type", "text/event-stream");
  for (let number = 0; number < 5; number++) {
    response.write(`id: ${number}\ndata: event ${number}\n\n`);
    await pause(0.2);
  }
  response.end();
});

app.get("/api/wait", async (request, response) => {
  await pause(Number(request.query.seconds));
  response.json({ waited: Number(request.query.seconds) });
});

const asked = (body, stream) => ({ model: "gpt-4o-mini", messages: [{ role: "user", content: body.text }], stream });

app.post("/api/ask", async (request, response) => {
  const said = await vendor.chat.completions.create(asked(request.body, false));
  response.json({ answer: said.choices[0].message.content });
});

app.post("/api/tell", async (request, response) => {
  const stream = await vendor.chat.completions.create(asked(request.body, true));
  response.set("Content-Type", "text/plain");
  for await (const part of stream) response.write(part.choices[0]?.delta?.content || "");
  response.end();
});

const server = http.createServer(app);
new WebSocketServer({ server, path: "/ws" }).on("connection", (socket) =>
  socket.on("message", (data) => socket.send(String(data).toUpperCase())),
);
server.listen(process.env.PORT || 3000);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
