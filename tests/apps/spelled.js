// The handlers of spelled.py under Express. PORT says where.
const app = require("express")();
app.get("/limited", (_, res) => res.send("limited"));
app.get("/item/:name", (_, res) => res.send("item"));
app.get("/item/:name/make", (_, res) => res.send("make"));
app.listen(Number(process.env.PORT), "127.0.0.1", () => console.log("ready"));
