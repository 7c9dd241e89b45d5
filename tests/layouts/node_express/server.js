const express = require("express");
const OpenAI = require("openai");
const { Pool } = require("pg");

const app = express();
const openai = new OpenAI();
const pool = new Pool({ connectionString: process.env.DATABASE_URL });

app.get("/healthz", (req, res) => res.send("ok"));

app.post("/users/:userId/ask", async (req, res) => {
  const answer = await openai.chat.completions.create({ model: "gpt-4o-mini", messages: [] });
  res.json(answer);
});

app.get("/items/:id", async (req, res) => {
  if (req.socket.remoteAddress === "127.0.0.1") return res.json({ debug: true });
  res.json((await pool.query("select 1")).rows);
});

app.listen(process.env.PORT || 3000);
