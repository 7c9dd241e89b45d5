const express = require("express");

const app = express();
app.use(express.json());
app.post("/json", (request, response) => {
  response.json({ got: request.body, scheme: request.protocol, host: request.get("host") });
});
app.get("/", (request, response) => response.type("text").send("hello from Express"));
const server = app.listen(process.env.PORT || 3000, "127.0.0.1");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
