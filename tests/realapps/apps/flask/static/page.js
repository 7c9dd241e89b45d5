// What a page does all day: fetches, an EventSource, a WebSocket. Each writes a line once it has gone well.
const socket = document.currentScript.dataset.socket;
const say = (text) => document.querySelector("#seen").append(Object.assign(document.createElement("li"), { textContent: text }));

document.querySelector("#go").addEventListener("click", async () => {
  const items = await (await fetch("/api/items")).json();
  say(`${items.length} items`);
  const echoed = await fetch("/api/echo", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ said: "hello" }),
  });
  say(`echo ${(await echoed.json()).said}`);
  const events = new EventSource("/api/events");
  let count = 0;
  events.onmessage = () => {
    if (++count === 5) {
      events.close();
      say("5 events");
      if (!socket) say("done");
    }
  };
  if (socket) {
    const open = new WebSocket(`ws://${location.host}${socket}`);
    open.onopen = () => open.send("hello");
    open.onmessage = (message) => {
      say(`socket ${message.data}`);
      open.close();
      setTimeout(() => say("done"), 1500);
    };
  }
});
