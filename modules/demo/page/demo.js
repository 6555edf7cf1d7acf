"use strict";

// Reconnecting: full jitter over an exponential ceiling, in milliseconds.
const BACKOFF_BASE = 500;
const BACKOFF_CEILING = 30_000;
// A connection that stays open for this long has recovered: back-off starts over.
const STABLE_AFTER = 5_000;
// The service says nothing about a message that went well. One without an error
// for this long is shown as sent; an error that comes later still marks it failed.
const SENT_AFTER = 400;
const KEEP_FRAMES = 200;
const KEEP_MESSAGES = 500;

const CLOSE_TEXT = {
  1000: "closed normally",
  1001: "the page was left",
  1005: "closed without a code",
  1006: "no close frame: refused, or the network is away",
  1009: "a message was too big",
  1012: "the service restarts",
  1013: "connection limit reached",
  4401: "pass or token not valid",
  4403: "disconnected by the backend",
  4408: "read too slowly",
};

const random = (from, to) => from + Math.random() * (to - from);
const backoff = (attempt) => random(0, Math.min(BACKOFF_CEILING, BACKOFF_BASE * 2 ** attempt));
const clock = (date) => date.toLocaleTimeString("en-GB", { hourCycle: "h23" });
const isUser = (text) => /^[1-9][0-9]{0,18}$/.test(text) && BigInt(text) <= 9223372036854775807n;
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const newID = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

// User ids go up to 2^63-1, which a JavaScript number can't hold: where the browser
// tells the source text of a number, ids are read and written by it.
function parseFrame(text) {
  return JSON.parse(text, (key, value, context) =>
    (key === "sender_id" || key === "recipient_id") && typeof value === "number" ? (context?.source ?? String(value)) : value);
}
const quote = (text) => JSON.stringify(text.toWellFormed?.() ?? text);
const writeFrame = ({ id, chat, to, body }) =>
  `{"client_message_id":${quote(id)},"chat_id":${quote(chat)},"recipient_id":${to},"body":${quote(body)}}`;

class RequestError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function post(path, init) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(10_000), ...init });
  } catch {
    throw new RequestError("the service can't be reached", 0, 0);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const text = body?.detail?.details?.["non-field-error"] ?? body?.detail?.title ?? "no reason given";
    throw new RequestError(`HTTP ${answer.status}: ${text}`, answer.status, Number(answer.headers.get("Retry-After")) * 1000 || 0);
  }
  return body;
}

// Connection keeps a WebSocket open for one user until it is told not to. It tells
// its owner what happens; of the page it knows nothing.
class Connection {
  constructor(user, listener) {
    this.user = user;
    this.listener = listener;
    this.attempt = 0;
    this.round = 0; // counts the tries: what belongs to an old one is ignored
  }

  get isOpen() { return this.socket?.readyState === WebSocket.OPEN; }

  async connect() {
    clearTimeout(this.timer);
    const round = ++this.round;
    this.listener.state("connecting", "connecting", "getting a pass");
    try {
      if (!this.token) {
        const answer = await post("demo/token", {
          headers: { "Content-Type": "application/json" },
          body: `{"user_id": ${this.user}}`,
        });
        this.token = answer.access_token;
      }
      if (round !== this.round) return;
      const { connection_pass: pass } = await post("messages/get-connection-pass", {
        headers: { Authorization: `Bearer ${this.token}` },
      });
      if (round !== this.round) return;
      this.open(pass, round);
    } catch (error) {
      if (round !== this.round) return;
      if (error.status === 401) this.token = undefined;
      this.listener.info(error.message);
      this.later(Math.max(backoff(this.attempt++), error.retryAfter ? error.retryAfter + random(0, 1000) : 0), error.message);
    }
  }

  open(pass, round) {
    const address = new URL("messages/", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = new URLSearchParams({ connection_pass: pass });
    this.listener.state("connecting", "connecting", "opening the WebSocket");
    const socket = this.socket = new WebSocket(address);
    socket.onopen = () => {
      if (round !== this.round) return socket.close();
      this.stable = setTimeout(() => { this.attempt = 0; }, STABLE_AFTER);
      this.listener.info("open");
      this.listener.state("open", "connected", address.origin + address.pathname); // without the pass
      this.listener.open();
    };
    socket.onmessage = (event) => {
      if (round === this.round) this.listener.frame(event.data);
    };
    socket.onclose = (event) => {
      if (round !== this.round) return;
      clearTimeout(this.stable);
      this.socket = undefined;
      const reason = event.reason || CLOSE_TEXT[event.code] || "";
      this.listener.info(`close ${event.code} ${reason}`.trim());
      this.listener.closed();
      this.afterClose(event.code, reason);
    };
  }

  // What to do after a close, code by code, as the service's documents ask for.
  afterClose(code, reason) {
    const said = `${code} ${reason}`.trim();
    switch (code) {
      case 4403:
        return this.listener.state("closed", "closed", `${said} · will not reconnect by itself`);
      case 1012:
        return this.later(random(500, 5_000), said);
      case 1013:
        return this.later(random(15_000, 60_000), said);
      case 4401:
        this.token = undefined;
    }
    return this.later(backoff(this.attempt++), said);
  }

  later(delay, why) {
    const round = ++this.round;
    const due = Date.now() + delay;
    const tick = () => {
      if (round !== this.round) return;
      const left = due - Date.now();
      if (left <= 0) return void this.connect();
      this.listener.state("waiting", "reconnecting", `in ${Math.ceil(left / 1000)} s · ${why}`);
      this.timer = setTimeout(tick, Math.min(left, 500));
    };
    tick();
  }

  // stop closes the connection and keeps it closed.
  stop(why) {
    clearTimeout(this.timer);
    clearTimeout(this.stable);
    this.round++;
    const socket = this.socket;
    this.socket = undefined;
    if (socket) {
      socket.close(1000);
      this.listener.info("close 1000, by this page");
      this.listener.closed();
    }
    this.listener.state("closed", "disconnected", why);
  }
}

// Pane is one user's half of the page.
class Pane {
  constructor(name, user, peer) {
    this.name = name;
    this.user = user;
    this.peer = peer;
    this.own = new Map(); // client_message_id -> own message
    this.known = new Set(); // "sender client_message_id" of what came in
    this.outbox = [];
    this.frameCount = 0;
    this.unread = 0;
    this.onUser = () => {};
    this.onUnread = () => {};

    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.root.querySelector(selector);
    this.ui = {
      avatar: find(".avatar"), user: find(".user"), peer: find(".peer"), state: find(".state"), detail: find(".detail"),
      toggle: find(".toggle"), now: find(".now"), fault: find(".fault"), messages: find(".messages"), list: find(".list"), form: find(".composer"), composer: find("textarea"),
      log: find(".log"), frames: find(".frames"), count: find(".count"),
    };
    this.root.id = `pane-${name}`;
    this.root.dataset.testid = `pane-${name}`;
    this.ui.composer.id = `composer-${name}`;
    find("[data-for]").htmlFor = this.ui.composer.id;
    this.ui.fault.id = `fault-${name}`;
    for (const field of [this.ui.user, this.ui.peer]) {
      field.setAttribute("aria-describedby", this.ui.fault.id);
      field.addEventListener("input", () => this.fit(field));
    }
    this.ui.user.addEventListener("change", () => this.changeUser());
    this.ui.peer.addEventListener("change", () => this.changePeer());
    this.ui.now.addEventListener("click", () => {
      this.ui.toggle.focus(); // this button goes away
      this.connectNow();
    });
    this.ui.log.addEventListener("toggle", () => {
      if (this.ui.log.open) this.ui.log.scrollIntoView({ block: "nearest" });
    });
    this.ui.toggle.addEventListener("click", () => this.toggle());
    this.ui.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.write();
    });
    this.ui.composer.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.write();
      }
    });
    this.ui.composer.addEventListener("input", () => this.growComposer());
    // The list stays at its end unless one has scrolled up, also when it shrinks.
    this.following = true;
    this.ui.messages.addEventListener("scroll", () => {
      const list = this.ui.messages;
      if (list.clientHeight === this.height) this.following = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    });
    new ResizeObserver(() => {
      this.height = this.ui.messages.clientHeight;
      this.follow();
    }).observe(this.ui.messages);
    this.show(this.ui.user, user);
    this.show(this.ui.peer, peer);
    this.rename();
    this.start();
  }

  start() {
    this.connection = new Connection(this.user, this);
    this.connection.connect();
  }

  rename() {
    this.root.setAttribute("aria-label", `User ${this.user}`);
    this.ui.avatar.textContent = this.user.slice(-2);
    this.onUser(this);
  }

  changeUser() {
    const user = this.ui.user.value.trim();
    this.judge();
    if (!isUser(user) || user === this.user) return;
    this.connection.stop("");
    this.user = user;
    this.show(this.ui.user, user);
    this.own.clear();
    this.known.clear();
    this.outbox = [];
    this.ui.list.replaceChildren();
    this.rename();
    this.start();
  }

  changePeer() {
    const peer = this.ui.peer.value.trim();
    if (isUser(peer)) this.peer = peer;
    this.judge();
  }

  setPeer(peer) {
    this.show(this.ui.peer, peer);
    this.changePeer();
  }

  // ask takes what the address asks for. A text that is no id is shown and refused, as
  // if it had been typed.
  ask(user, peer) {
    if (user !== null) this.show(this.ui.user, user);
    if (peer !== null) this.show(this.ui.peer, peer);
    this.judge();
  }

  show(field, id) {
    field.value = id;
    this.fit(field);
  }

  // fit makes room for the whole id.
  fit(field) { field.style.width = `calc(${Math.max(6, field.value.length)}ch + 18px)`; }

  // judge says what is wrong with the ids, and what goes on meanwhile.
  judge() {
    const good = [this.ui.user, this.ui.peer].map((field) => {
      const fine = isUser(field.value.trim());
      field.setAttribute("aria-invalid", String(!fine));
      return fine;
    });
    const still = [good[0] ? "" : `you are still user ${this.user}`, good[1] ? "" : `nothing can be sent until it is one`].filter(Boolean);
    const text = still.length ? `A user id is a whole number from 1 to 9223372036854775807; ${still.join(", and ")}.` : "";
    if (this.ui.fault.textContent !== text) this.ui.fault.textContent = text;
    this.ui.fault.hidden = !text;
  }

  toggle() {
    if (this.phase !== "closed") return this.connection.stop("by you");
    this.connectNow();
  }

  connectNow() {
    this.connection.attempt = 0;
    this.connection.connect();
  }

  // What Connection tells.

  state(phase, text, detail) {
    this.phase = phase;
    this.root.dataset.state = phase;
    if (this.ui.state.textContent !== text) this.ui.state.textContent = text;
    this.ui.detail.textContent = detail;
    this.ui.detail.title = detail;
    const label = { open: "Disconnect", connecting: "Stop", waiting: "Stop", closed: "Connect" }[phase];
    if (this.ui.toggle.textContent !== label) this.ui.toggle.textContent = label;
    this.ui.now.hidden = phase !== "waiting";
  }

  info(text) { this.logFrame("info", "·", text); }

  open() {
    const waiting = this.outbox;
    this.outbox = [];
    for (const message of waiting) this.transmit(message);
  }

  closed() {
    for (const message of this.own.values()) {
      if (message.state === "sending") this.mark(message, "failed", "the connection closed; not known to be stored");
    }
  }

  frame(text) {
    this.logFrame("in", "←", text);
    let frame;
    try {
      frame = parseFrame(text);
    } catch {
      return;
    }
    if (frame === null || typeof frame !== "object") return;
    if (typeof frame.title === "string" && "details" in frame) return this.receiveError(frame);
    if (typeof frame.client_message_id === "string") return this.receiveMessage(frame);
  }

  receiveError(frame) {
    const details = Array.isArray(frame.details)
      ? frame.details.map((fault) => `${(fault.loc ?? []).join(".")}: ${fault.msg}`).join("; ")
      : String(frame.details);
    const message = this.own.get(frame.in_reply_to);
    if (message) this.mark(message, "failed", `${frame.title} ${details}`);
    else this.note(`${frame.title} ${details}`);
  }

  receiveMessage(frame) {
    const sender = String(frame.sender_id);
    const mine = sender === this.user ? this.own.get(frame.client_message_id) : undefined;
    if (mine && frame.status === "rejected") return this.mark(mine, "rejected", String(frame.reject_reason ?? ""));
    const key = `${sender} ${frame.client_message_id}`;
    if (this.known.has(key)) return; // delivered twice: a retry whose first try had arrived
    this.known.add(key);
    if (this.known.size > KEEP_MESSAGES) this.known.delete(this.known.values().next().value);

    const item = element("li", "message");
    item.dataset.testid = "message";
    item.dataset.own = "false";
    item.dataset.state = String(frame.status ?? "");
    item.dataset.clientMessageId = frame.client_message_id;
    const meta = element("div", "meta");
    const sent = new Date(frame.sent_at);
    meta.append(element("span", "from", `user ${sender}`), element("time", "", clock(isNaN(sent) ? new Date() : sent)));
    item.append(element("div", "bubble", String(frame.body ?? "")), meta);
    this.append(item);
    if (this.root.classList.contains("behind")) {
      this.unread++;
      this.onUnread(this);
    }
  }

  // Own messages: waiting -> sending -> sent, and from each to failed or rejected.

  write() {
    const body = this.ui.composer.value;
    if (body.trim() === "") return this.ui.composer.focus();
    if (!isUser(this.ui.peer.value.trim())) return this.ui.peer.focus();
    this.ui.composer.value = "";
    this.growComposer();
    this.ui.composer.focus();
    const pair = [this.user, this.peer].sort((a, b) => (BigInt(a) < BigInt(b) ? -1 : 1));
    const message = { id: newID(), to: this.peer, chat: `demo-${pair.join("-")}`, body, at: new Date() };
    message.item = element("li", "message own");
    message.item.dataset.testid = "message";
    message.item.dataset.own = "true";
    message.item.dataset.clientMessageId = message.id;
    message.mark = element("span", "mark");
    message.meta = element("div", "meta");
    message.meta.append(element("span", "to", `to ${message.to}`), element("time", "", clock(message.at)), message.mark);
    message.item.append(element("div", "bubble", body), message.meta);
    this.own.set(message.id, message);
    if (this.own.size > KEEP_MESSAGES) this.own.delete(this.own.keys().next().value);
    this.append(message.item, true);
    this.transmit(message);
  }

  transmit(message) {
    if (!this.connection.isOpen) {
      this.outbox.push(message);
      return this.mark(message, "waiting", "until connected");
    }
    const frame = writeFrame(message);
    this.connection.socket.send(frame);
    this.logFrame("out", "→", frame);
    this.mark(message, "sending", "");
    const transmission = message.transmission = {};
    setTimeout(() => {
      if (message.transmission === transmission && message.state === "sending") this.mark(message, "sent", "");
    }, SENT_AFTER);
  }

  mark(message, state, why) {
    message.state = state;
    message.item.dataset.state = state;
    message.mark.textContent = why ? `${state}: ${why}` : state;
    message.retry?.remove();
    message.retry = undefined;
    if (state === "failed") {
      // Under the same id: should the first try have been stored, receivers know it again.
      message.retry = element("button", "retry", "try again");
      message.retry.type = "button";
      message.retry.dataset.testid = "retry";
      message.retry.addEventListener("click", () => this.transmit(message));
      message.meta.append(message.retry);
    }
    this.follow();
  }

  note(text) {
    const item = element("li", "note", text);
    item.dataset.testid = "note";
    this.append(item);
  }

  append(item, always) {
    const list = this.ui.list;
    if (always) this.following = true;
    list.append(item);
    while (list.childElementCount > KEEP_MESSAGES) list.firstElementChild.remove();
    this.follow();
  }

  follow() {
    if (this.following) this.ui.messages.scrollTop = this.ui.messages.scrollHeight;
  }

  growComposer() {
    const field = this.ui.composer;
    field.style.height = "";
    if (field.scrollHeight > field.clientHeight) field.style.height = `${Math.min(field.scrollHeight + 2, 132)}px`;
  }

  logFrame(way, arrow, text) {
    const list = this.ui.frames;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    const item = element("li", `frame ${way}`);
    item.dataset.testid = "frame";
    item.dataset.way = way;
    const mark = element("span", "way", arrow);
    mark.title = { in: "received", out: "sent", info: "connection" }[way];
    item.append(mark, element("time", "", clock(new Date())), element("code", "", text));
    list.append(item);
    while (list.childElementCount > KEEP_FRAMES) list.firstElementChild.remove();
    if (way !== "info") this.ui.count.textContent = String(++this.frameCount);
    if (atEnd) list.scrollTop = list.scrollHeight;
  }
}

function addTabs(panes) {
  const bar = document.querySelector(".tabs");
  bar.hidden = false;
  const tabs = panes.map((pane) => {
    const tab = element("button", "tab");
    tab.type = "button";
    tab.dataset.testid = `tab-${pane.name}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", pane.root.id);
    const name = element("span", "", `User ${pane.user}`);
    const unread = element("span", "unread");
    const count = element("span");
    unread.append(count, element("span", "sr", " unread messages"));
    unread.hidden = true;
    tab.append(name, unread);
    pane.onUser = () => { name.textContent = `User ${pane.user}`; };
    pane.onUnread = () => {
      count.textContent = String(pane.unread);
      unread.hidden = !pane.unread;
    };
    tab.addEventListener("click", () => show(pane));
    bar.append(tab);
    return tab;
  });
  const show = (shown) => panes.forEach((pane, i) => {
    const selected = pane === shown;
    tabs[i].setAttribute("aria-selected", String(selected));
    tabs[i].tabIndex = selected ? 0 : -1;
    pane.root.classList.toggle("behind", !selected);
    if (!selected) return;
    pane.unread = 0;
    pane.onUnread();
    pane.follow();
  });
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    show(panes[next]);
    tabs[next].focus();
  });
  // Only a narrow screen shows one pane at a time; elsewhere none is behind.
  const narrow = matchMedia("(max-width: 760px)");
  const arrange = () => (narrow.matches ? show(panes[0]) : panes.forEach((pane) => pane.root.classList.remove("behind")));
  narrow.addEventListener("change", arrange);
  arrange();
}

function main() {
  const query = new URLSearchParams(location.search);
  const asked = (name, otherwise) => (isUser(query.get(name) ?? "") ? query.get(name) : otherwise);
  const place = document.querySelector(".panes");
  if (query.has("user")) {
    const pane = new Pane("left", asked("user", "3"), asked("to", "1"));
    pane.ask(query.get("user"), query.get("to"));
    document.title = `User ${pane.user} · demo`;
    place.classList.add("single");
    place.replaceChildren(pane.root);
    return;
  }
  const left = new Pane("left", asked("left", "1"), asked("right", "2"));
  const right = new Pane("right", asked("right", "2"), asked("left", "1"));
  place.replaceChildren(left.root, right.root);
  addTabs([left, right]);
  // Who the one side is, is whom the other side writes to.
  const pair = (pane, other) => {
    const tab = pane.onUser;
    pane.onUser = () => { tab(); other.setPeer(pane.user); };
  };
  pair(left, right);
  pair(right, left);
  left.ask(query.get("left"), null);
  right.ask(query.get("right"), null);
}

main();
