// The connection: opened again and again with growing pauses, and known to be dead when it says nothing.

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10000;
const SILENCE_MS = 7000;

/**
 * Follows the sections of the page's server.
 *
 * @param {object} on - `sections(map)`, `contact(state, retryMs)` with `lost`, `there` or `keyless`, `role(name)`.
 */
export class Link {
  constructor(on) {
    this.on = on;
    this.pauseMs = FIRST_RETRY_MS;
    this.socket = null;
    this.heardMs = 0;
    this.timer = null;
    setInterval(() => this.watch(), 1000);
    // A phone that wakes up should not wait for the next attempt.
    document.addEventListener("visibilitychange", () => document.hidden || this.socket || this.retryNow());
    window.addEventListener("online", () => this.socket || this.retryNow());
  }

  retryNow() {
    clearTimeout(this.timer);
    this.pauseMs = FIRST_RETRY_MS;
    this.open();
  }

  async open() {
    if (this.opening) return;
    this.opening = true;
    try {
      const answer = await fetch("/whoami", { signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const { role } = await answer.json();
      this.on.role(role);
      if (role === "nobody") {
        this.on.contact("keyless", 0);
        return;
      }
      this.connect();
    } catch {
      this.lost();
    } finally {
      this.opening = false;
    }
  }

  connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    this.socket = socket;
    this.heardMs = Date.now();
    socket.onmessage = (message) => {
      this.heardMs = Date.now();
      this.pauseMs = FIRST_RETRY_MS;
      this.on.contact("there", 0);
      this.on.sections(JSON.parse(message.data).sections);
    };
    socket.onclose = () => this.socket === socket && this.lost();
  }

  watch() {
    if (this.socket && Date.now() - this.heardMs > SILENCE_MS) {
      this.socket.onclose = null;
      this.socket.close();
      this.lost();
    }
  }

  lost() {
    this.socket = null;
    const pauseMs = this.pauseMs * (0.75 + 0.5 * Math.random());
    this.pauseMs = Math.min(2 * this.pauseMs, LONGEST_RETRY_MS);
    this.on.contact("lost", pauseMs);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), pauseMs);
  }
}

/** Asks the server for something; resolves to an object, or rejects with what it said. */
export async function ask(verb, content) {
  let answer;
  try {
    answer = await fetch(`/${verb}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
      signal: AbortSignal.timeout(5000),
    });
  } catch {
    throw new Error("no contact with the program");
  }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}
