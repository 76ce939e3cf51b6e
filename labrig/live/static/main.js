// The page: what the sections say, put where it belongs.

import { ArrayPanel } from "/static/array.js";
import { Curves } from "/static/curves.js";
import { clockTime, count, duration, number, percent, quantity } from "/static/format.js";
import { holdToFire } from "/static/hold.js";
import { ask, Link } from "/static/link.js";

const HOLD_MS = 1000;
const $ = (id) => document.getElementById(id);

const state = { contact: "lost", role: "nobody", run: null, rig: null, gone: false };
const arrays = new ArrayPanel();
const curves = new Curves();

function text(id, value) {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
}

function word() {
  if (state.contact === "keyless") return "KEY NEEDED";
  if (state.contact === "lost") return state.gone ? state.run.word : state.run ? "NO CONTACT" : "CONNECTING";
  return state.run?.word ?? "CONNECTING";
}

function showBanner() {
  const now = word();
  if ($("word").textContent !== now) {
    text("word", now);
    $("banner").dataset.word = now;
    text("announcer", state.run ? `${state.run.title}: ${now.toLowerCase()}` : now.toLowerCase());
  }
  document.title = `${now} · ${state.run?.title ?? "labrig"}`;
  if (!state.run) return;
  const { progress, title } = state.run;
  const live = state.contact === "there";
  text("time-left", live && progress.left_s !== null && progress.total ? `${duration(progress.left_s)} left` : "");
  const parts = [title];
  if (state.run.heading) parts.push(state.run.heading);
  if (progress.total) parts.push(`${count(progress.done)} of ${count(progress.total)} ${progress.unit}`);
  else if (progress.done) parts.push(`${count(progress.done)} ${progress.unit}`);
  if (live && progress.rate_hz) parts.push(`${number(progress.rate_hz)} per second`);
  text("headline", parts.join(" · "));
  text("reason", state.run.waits_for ?? "");
  $("bar").hidden = !progress.total;
  if (progress.total) {
    const done = Math.min(100, (100 * progress.done) / progress.total);
    $("bar-fill").style.width = `${done}%`;
    $("bar").setAttribute("aria-valuenow", done.toFixed(0));
    $("bar").setAttribute("aria-valuetext", `${count(progress.done)} of ${count(progress.total)} ${progress.unit}`);
  }
}

function fact(name, value) {
  const box = document.createElement("div");
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = value;
  box.append(term, description);
  return box;
}

function leaseText(lease) {
  if (!lease) return "free";
  const until = lease.expires_unix_s ? `, until ${clockTime(lease.expires_unix_s)}` : "";
  return lease.holder + until + (lease.waiting.length ? `; next: ${lease.waiting.join(", ")}` : "");
}

function showFacts() {
  if (!state.run) return;
  const { run, outputs, supply, axes, missed } = state.run;
  const facts = outputs === null ? [] : [["Outputs", { on: "on", off: "off", unknown: "not known" }[outputs]]];
  if (state.rig?.lease !== undefined && (state.rig.can_stop || state.rig.lease)) facts.push(["Lease", leaseText(state.rig.lease)]);
  if (supply && outputs !== "off") facts.push(["Array supply", `${quantity(supply.voltage_v, "V")}, ${quantity(supply.current_a, "A")}${supply.in_compliance ? ", at its limit" : ""}`]);
  for (const [name, value] of Object.entries(axes)) facts.push([name, number(value, 5)]);
  if (run) {
    facts.push(["Started", clockTime(Date.parse(run.started_utc) / 1000)]);
    if (run.recording) facts.push(["Recording", run.recording]);
    if (run.duration_s !== null) facts.push(["Took", duration(run.duration_s)]);
    if (run.energy_j !== null) facts.push(["Energy", quantity(run.energy_j, "J")]);
    if (run.alarms) facts.push(["Alarms", String(run.alarms)]);
  }
  if (missed) facts.push(["Events not shown", count(missed)]);
  $("facts").replaceChildren(...facts.map(([name, value]) => fact(name, value)));
  $("alarm").hidden = !state.run.alarm;
  text("alarm", state.run.alarm ?? "");
}

function showPhases() {
  const phases = state.run?.phases ?? [];
  $("phases-card").hidden = phases.length === 0;
  const rows = phases.map((phase) => {
    const row = document.createElement("tr");
    const cells = [phase.name, `${count(phase.step)} of ${count(phase.steps)}`, phase.loss === null ? "" : number(phase.loss, 4), phase.accuracy === null ? "" : percent(phase.accuracy)];
    cells.forEach((value, index) => {
      const cell = document.createElement("td");
      if (index) cell.className = "number";
      cell.textContent = value;
      row.append(cell);
    });
    return row;
  });
  $("phases").replaceChildren(...rows);
}

function showLog(lines) {
  const [log, box] = [$("log"), $("log-box")];
  const last = log.lastElementChild ? Number(log.lastElementChild.dataset.number) : 0;
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  for (const line of lines) {
    if (line.number <= last) continue;
    const item = document.createElement("li");
    item.dataset.number = line.number;
    item.className = `${line.level}-line`;
    const [time, words] = [document.createElement("time"), document.createElement("span")];
    time.textContent = clockTime(line.time_unix_s);
    time.dateTime = new Date(1000 * line.time_unix_s).toISOString();
    words.textContent = line.text;
    item.append(time, words);
    log.append(item);
  }
  while (log.children.length > 400) log.firstElementChild.remove();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function roleText() {
  if (!state.rig || state.role === "nobody") return "";
  if (!state.rig.can_stop) return "A recording: there is nothing to steer from here.";
  if (!state.rig.can_pause) return "You may watch and stop.";
  return state.role === "owner" ? "You hold the owner's key: you may also let the run go on." : "You may watch, pause and stop.";
}

function showControls() {
  const known = state.rig !== null && state.role !== "nobody";
  $("shown").hidden = !state.run || state.contact === "keyless";
  $("controls").hidden = !known || !state.rig.can_stop;
  text("stop-ends", state.rig?.stop_ends ?? "the run");
  const over = Boolean(state.run?.over);
  $("stop").disabled = over;
  const paused = state.run?.word === "PAUSED";
  $("pause").hidden = !known || !state.rig.can_pause;
  $("resume").hidden = $("pause").hidden;
  $("pause").disabled = over || paused || state.contact !== "there";
  $("resume").disabled = over || state.role !== "owner" || state.contact !== "there";
  $("resume").title = state.role === "owner" ? "" : "needs the owner's key";
  text("role", roleText());
  $("login").hidden = state.contact !== "keyless";
}

function show() {
  showBanner();
  showFacts();
  showPhases();
  showControls();
}

function reset() {
  state.run = null;
  state.gone = false;
  $("log").replaceChildren();
  arrays.reset();
  curves.reset();
}

const link = new Link({
  role(name) {
    state.role = name;
    $("logout").hidden = !localStorage.getItem("labrig-key-given");
  },
  contact(contact, retryMs) {
    state.contact = contact;
    const again = `trying again in ${Math.max(1, Math.round(retryMs / 1000))} s`;
    if (contact === "lost" && state.gone) text("contact", `The program ended. This is the last it said; ${again}.`);
    else if (contact === "lost") text("contact", state.run ? `No word from the program, what follows may be old; ${again}. To be sure, stop at the rig.` : `No answer; ${again}.`);
    else text("contact", "");
    show();
  },
  sections(sections) {
    if (sections.rig) {
      if (state.rig && state.rig.boot !== sections.rig.boot) reset();
      state.rig = sections.rig;
    }
    if (sections.run) {
      state.run = sections.run;
      state.gone = sections.run.ended;
    }
    show();
    for (const [name, content] of Object.entries(sections)) {
      if (name.startsWith("array/")) arrays.take(content);
      else if (name === "log") showLog(content.lines);
      else if (name === "steps") curves.steps(content);
      else if (name === "supply") curves.supply(content);
    }
  },
});

async function steer(verb) {
  text("answer", { stop: "Asking for outputs off…", pause: "Asking for a pause…", resume: "Asking to go on…" }[verb]);
  try {
    const { who } = await ask(verb, { name: $("name").value });
    text("answer", { stop: `STOP was taken; asked for by ${who}`, pause: "Pauses after the block in hand.", resume: "Goes on." }[verb]);
  } catch (error) {
    text("answer", `${verb === "stop" ? "STOP" : verb} was NOT taken: ${error.message}${verb === "stop" ? ". Stop at the rig." : ""}`);
  }
}

holdToFire($("stop"), HOLD_MS, {
  done: () => steer("stop"),
  early: () => text("answer", "Not stopped: hold for one second."),
  clicked: () => $("confirm").showModal(),
});
$("confirm-yes").addEventListener("click", () => {
  $("confirm").close();
  steer("stop");
});
$("confirm-no").addEventListener("click", () => $("confirm").close());
$("pause").addEventListener("click", () => steer("pause"));
$("resume").addEventListener("click", () => steer("resume"));
$("name").value = localStorage.getItem("labrig-name") ?? "";
$("name").addEventListener("change", () => localStorage.setItem("labrig-name", $("name").value));

async function login(key) {
  text("login-fault", "");
  try {
    await ask("login", { key });
    localStorage.setItem("labrig-key-given", "yes");
    $("key").value = "";
  } catch (error) {
    text("login-fault", error.message);
    return;
  }
  link.retryNow();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  login($("key").value);
});
$("logout").addEventListener("click", async () => {
  await ask("logout", {});
  localStorage.removeItem("labrig-key-given");
  location.reload();
});

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  // Not left in the address, where it would be seen and sent on.
  history.replaceState(null, "", location.pathname);
  await login(given);
} else {
  link.open();
}
