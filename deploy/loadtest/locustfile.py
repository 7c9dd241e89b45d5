"""100 daily users at their peak: all of them there at once, each doing something every twenty seconds or so."""

import itertools

from locust import HttpUser, between, task

_numbers = itertools.count(1)


class DailyUser(HttpUser):
    wait_time = between(15, 25)

    def on_start(self):
        self.name = f"premium_{next(_numbers)}"

    @task(8)
    def ask(self):
        self.client.post(
            f"/api/user/{self.name}/ask", json={"question": "What is an outrigger?"}, name="ask", timeout=60
        )

    @task(2)
    def story(self):
        body = {"question": "Tell me of one."}
        with self.client.post(
            f"/api/user/{self.name}/story", json=body, name="story", timeout=60, catch_response=True
        ) as answer:
            if answer.ok and "data:" not in answer.text:
                answer.failure("a story without a word")

    @task(6)
    def notes(self):
        self.client.get("/api/notes", name="notes", timeout=60)

    @task(2)
    def note(self):
        self.client.post("/api/notes", json={"text": f"by {self.name}"}, name="note", timeout=60)

    @task(2)
    def page(self):
        self.client.get("/", name="page", timeout=60)
