// The page. What comes from containers is put in as text, never as HTML.

const TOKEN = "autoheal-token";
const HOUR = 3600;
const POINT_SECONDS = 5;
const SHORTEST = 300; // of a chart, in seconds
const GIB = 2 ** 30;

let shown = null; // the last status
let points = []; // the last hour
const charts = new Map();

const byId = (id) => document.getElementById(id);

/** An element with properties and children; a child that is text stays text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// -- numbers and times

const size = (bytes) =>
  bytes === null || bytes === undefined ? "–"
    : bytes >= GIB ? `${(bytes / GIB).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
const percent = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} %`);
const share = (used, total) => (used !== null && total ? (100 * used) / total : null);

function span(seconds) {
  if (seconds < 0) seconds = 0;
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= length) return `${Math.round(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

// -- the connection

let source = null;

function connect() {
  if (source) return;
  source = new EventSource("/api/events");
  source.addEventListener("status", (event) => {
    say("live", "live");
    show(JSON.parse(event.data));
  });
  source.onerror = () => {
    say("lost", "connection lost, trying again");
    if (source && source.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, 2000);
    }
  };
}

function disconnect() {
  if (source) source.close();
  source = null;
}

function say(state, words) {
  const line = byId("connection");
  if (line.dataset.state === state) return;
  line.dataset.state = state;
  line.textContent = words;
}

// Nothing is gathered for a page that nobody sees.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    disconnect();
    say("paused", "paused while hidden");
  } else {
    loadHistory().then(connect);
  }
});

async function loadHistory() {
  try {
    points = await (await fetch("/api/history")).json();
  } catch {
    points = [];
  }
}

// -- what is shown

function show(status) {
  const before = shown;
  shown = status;
  announce(before, status);
  addPoint(status);
  showHead(status);
  if (status.problem) return; // what was there stays, marked as old by the banner
  showMachine(status);
  showModels(status);
  showContainers(status);
  showIncidents(status);
}

/** Tell screen readers what has changed in anybody's health, and nothing else. */
function announce(before, status) {
  if (!before) return;
  const old = new Map(before.containers.map((one) => [one.container, one.health]));
  const changes = status.containers
    .filter((one) => old.has(one.container) && old.get(one.container) !== one.health)
    .map((one) => `${one.container} is ${one.health}`);
  if (changes.length) byId("news").textContent = changes.join(", ");
}

function addPoint(status) {
  const last = points.at(-1);
  if (status.problem || (last && status.at - last.at < POINT_SECONDS)) return;
  const gpus = {};
  for (const gpu of status.gpus) {
    gpus[gpu.uuid] = [
      share(gpu.memory_used_bytes, gpu.memory_total_bytes),
      gpu.utilization_percent, gpu.temperature_celsius, gpu.power_draw_watts,
    ];
  }
  const { cpu_percent, memory_used_bytes, memory_total_bytes } = status.host;
  points.push({ at: status.at, cpu: cpu_percent, memory: share(memory_used_bytes, memory_total_bytes), gpus });
  points = points.filter((point) => point.at > status.at - HOUR);
}

function showHead(status) {
  const host = status.host;
  byId("hostname").textContent = host.name ? `on ${host.name}` : "";
  document.title = `autoheal${host.name ? ` · ${host.name}` : ""}`;
  byId("where").textContent = [host.ip, host.note, host.engine && `Docker ${host.engine}`].filter(Boolean).join(" · ");
  byId("version").textContent = `autoheal ${status.version}`;
  const paused = status.paused_until && status.paused_until > status.at;
  const words = [
    status.problem,
    host.gpu_fault && `The GPUs cannot be read: ${host.gpu_fault}`,
    paused && `Everything is left alone until ${moment(status.paused_until)}.`,
  ].filter(Boolean).join(" ");
  const banner = byId("banner");
  if (banner.textContent !== words) banner.textContent = words;
  banner.hidden = !words;
  const unlocked = status.writable && sessionStorage.getItem(TOKEN) !== null;
  byId("unlock").hidden = !status.writable;
  byId("unlock").textContent = unlocked ? "Lock" : "Unlock…";
  byId("pause").hidden = !unlocked;
  byId("pause").textContent = paused ? "Resume all" : "Pause all…";
}

function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [term, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(make("dt", {}, term), make("dd", {}, value));
  }
  return list;
}

/** Keep a card by its key, and put new facts above its chart. */
function card(parent, key, title, small, body) {
  let element = parent.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!element) {
    element = make("article", { class: "card", "data-key": key }, make("h3"), make("div"));
    parent.append(element);
  }
  element.querySelector("h3").replaceChildren(title, " ", make("small", {}, small));
  element.querySelector("div").replaceChildren(...body);
  return element;
}

function dropOthers(parent, keys) {
  for (const element of [...parent.children]) {
    if (keys.has(element.dataset.key)) continue;
    for (const [key, one] of charts) if (element.contains(one.root)) charts.delete(key);
    element.remove();
  }
}

function bar(label, value, high) {
  if (value === null) return null;
  return make("meter", { "aria-label": label, min: 0, max: 100, low: high, high: 95, optimum: 0, value });
}

function showMachine(status) {
  const parent = byId("cards");
  dropOthers(parent, new Set(["host", ...status.gpus.map((gpu) => gpu.uuid)]));
  showHost(parent, status);
  for (const gpu of status.gpus) showGpu(parent, gpu);
}

function showHost(parent, status) {
  const host = status.host;
  const used = share(host.memory_used_bytes, host.memory_total_bytes);
  const element = card(parent, "host", "Host", `${host.cpus} CPUs`, [
    facts([
      ["CPU", percent(host.cpu_percent)],
      ["Memory", `${size(host.memory_used_bytes)} of ${size(host.memory_total_bytes)} (${percent(used)})`],
      ["GPUs", status.gpus.length ? String(status.gpus.length) : "none is seen, neither by autoheal nor by a probe"],
      ["Models per GPU", host.load_score === null ? "" : String(host.load_score)],
    ]),
    bar("Memory in use", used, 85),
  ]);
  chart(element, "host", "CPU and memory of the host", [
    ["CPU", "%", points.map((point) => point.cpu)],
    ["memory", "%", points.map((point) => point.memory)],
  ]);
}

function showGpu(parent, gpu) {
  const used = share(gpu.memory_used_bytes, gpu.memory_total_bytes);
  const limit = gpu.power_limit_watts === null ? "" : ` of ${Math.round(gpu.power_limit_watts)} W`;
  const processes = gpu.processes.map((one) => {
    const whose = [one.container ?? one.name ?? "process", one.model].filter(Boolean).join(", ");
    return `${whose} (${one.pid}): ${size(one.memory_bytes)}`;
  });
  const element = card(parent, gpu.uuid, `GPU ${gpu.index ?? ""}`, `${gpu.name} · ${gpu.uuid}`, [
    facts([
      ["VRAM", used === null ? "it does not tell"
        : `${size(gpu.memory_used_bytes)} of ${size(gpu.memory_total_bytes)} (${percent(used)})`],
      ["Utilisation", gpu.utilization_percent === null ? "" : `${gpu.utilization_percent} %`],
      ["Temperature", gpu.temperature_celsius === null ? "" : `${gpu.temperature_celsius} °C`],
      ["Power", gpu.power_draw_watts === null ? "" : `${Math.round(gpu.power_draw_watts)} W${limit}`],
      ["Throttled", (gpu.throttle_reasons ?? []).join(", ").replaceAll("_", " ")],
      ["ECC errors", gpu.ecc_errors ? String(gpu.ecc_errors) : ""],
      ["Held by", processes.join("; ")],
      ["Seen by", gpu.seen_by === "autoheal" ? "" : gpu.seen_by],
    ]),
    bar("VRAM in use", used, 90),
  ].filter(Boolean));
  const column = (place) => points.map((point) => point.gpus[gpu.uuid]?.[place] ?? null);
  chart(element, gpu.uuid, `VRAM and utilisation of GPU ${gpu.index}`, [
    ["VRAM", "%", column(0)], ["utilisation", "%", column(1)],
  ]);
  if (column(2).some((value) => value !== null)) {
    chart(element, `${gpu.uuid} heat`, `Temperature and power of GPU ${gpu.index}`, [
      ["temperature", "°C", column(2)], ["power", "W", column(3)],
    ]);
  }
}

function table(heads, rows) {
  const cells = (row) => row.map((cell, place) => {
    const [label, kind] = heads[place];
    const element = make("td", { "data-label": label, class: kind, role: "cell" });
    element.append(...(Array.isArray(cell) ? cell : [cell]).filter((one) => one !== null && one !== ""));
    return element;
  });
  return make("table", { role: "table" },
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" },
      ...heads.map(([label, kind]) => make("th", { scope: "col", role: "columnheader", class: kind },
        label || make("span", { class: "visually-hidden" }, "Buttons"))))),
    make("tbody", { role: "rowgroup" }, ...rows.map((row) => make("tr", { role: "row" }, ...cells(row)))));
}

function showModels(status) {
  const parent = byId("model-table");
  if (!status.models.length) {
    parent.replaceChildren(make("p", { class: "empty" }, "No model is loaded, as far as the probes see."));
    return;
  }
  parent.replaceChildren(table(
    [["Model", "title"], ["Container"], ["Memory", "number"], ["In VRAM", "number"], ["State"], ["Unloaded in"]],
    status.models.map((one) => {
      const there = share(one.size_vram_bytes, one.size_bytes);
      return [
        make("span", { class: "name" }, one.name), one.container, size(one.size_bytes),
        make("span", { class: `pill ${there >= 99.9 ? "good" : "warn"}` }, percent(there)),
        one.state, one.unloaded_in_seconds === null ? "stays" : span(one.unloaded_in_seconds),
      ];
    })));
}

const HEALTH = { healthy: "good", unhealthy: "bad", starting: "warn" };

/** What has the focus, by a name that it has after it was drawn anew, too. */
function focused() {
  return document.activeElement?.dataset?.focus;
}

function focusOn(name) {
  if (name) document.querySelector(`[data-focus="${CSS.escape(name)}"]`)?.focus();
}

function showContainers(status) {
  const words = byId("find").value.trim().toLowerCase();
  const all = status.containers.filter((one) => one.watched || !byId("only-watched").checked);
  const found = all.filter((one) => `${one.container} ${one.id} ${one.health} ${one.reason}`.toLowerCase().includes(words));
  byId("count").textContent = `${found.length} of ${status.containers.length}`;
  const unlocked = status.writable && sessionStorage.getItem(TOKEN) !== null;
  const heads = [["Container", "title"], ["Health"], ["CPU", "number"], ["Memory", "number"], ["Attempts left"], [""]];
  const old = byId("container-table");
  const focus = focused();
  old.replaceChildren(found.length
    ? table(heads, found.map((one) => containerRow(status, one, unlocked)))
    : make("p", { class: "empty" }, "No container is like that."));
  focusOn(focus);
}

function containerRow(status, one, unlocked) {
  const health = one.state === "running" ? one.health : one.state;
  const held = one.gpu_processes.map((p) => `GPU ${p.gpu}: ${size(p.memory_bytes)} for ${p.model ?? p.name ?? "a process"} (${p.pid})`).join("; ");
  const paused = one.paused_until && one.paused_until > status.at;
  const button = (place, label, words, action) =>
    make("button", { type: "button", "aria-label": `${label} ${one.container}`, "data-focus": `${place} ${one.id}`, onclick: action }, words);
  return [
    [make("div", { class: "name" }, one.container), make("div", { class: "id" }, one.id)],
    [
      make("span", { class: `pill ${HEALTH[health] ?? ""}` }, health === "none" ? "no health check" : health), " ",
      one.given_up ? make("span", { class: "pill bad" }, "given up") : "", " ",
      one.incident_since && !one.given_up ? make("span", { class: "pill warn" }, `incident for ${span(status.at - one.incident_since)}`) : "", " ",
      paused ? make("span", { class: "pill warn" }, `paused for ${span(one.paused_until - status.at)}`) : "",
      one.line ? make("div", { class: "line" }, one.line) : "",
      held ? make("div", { class: "line" }, held) : "",
    ],
    percent(one.cpu_percent), size(one.memory_used_bytes),
    one.watched ? String(one.attempts_left) : "not watched",
    unlocked && one.watched
      ? [make("div", { class: "buttons" },
          button("heal", "Heal", "Heal…", () => askHeal(one)),
          paused ? button("pause", "Resume", "Resume", () => wish("/api/resume", { name: one.container }))
            : button("pause", "Pause", "Pause…", () => askPause(one.container)))]
      : "",
  ];
}

function showIncidents(status) {
  const list = byId("timeline");
  const opened = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.key));
  const focus = focused();
  list.replaceChildren(...(status.incidents.length
    ? status.incidents.map((one) => incident(one, opened))
    : [make("li", {}, "Nothing has happened yet.")]));
  focusOn(focus);
}

function incident(one, opened) {
  const end = one.closed === null ? (one.given_up ? "given up" : "open") : `${one.outcome} after ${span(one.closed - one.opened)}`;
  const good = ["healed", "recovered"].includes(one.outcome);
  return make("li", { class: one.closed === null ? "open" : good ? "healed" : "" },
    make("p", {}, make("strong", {}, one.subject), " ",
      make("span", { class: `pill ${one.closed === null ? "bad" : good ? "good" : ""}` }, end), " ",
      make("time", { class: "when", datetime: new Date(one.opened * 1000).toISOString() }, moment(one.opened))),
    make("p", {}, one.why),
    ...one.attempts.map((attempt) => {
      const key = `${one.subject} ${attempt.at}`;
      const took = attempt.ended === null ? "under way" : `${(attempt.ended - attempt.at).toFixed(1)} s`;
      return make("details", { "data-key": key, open: opened.has(key) },
        make("summary", { "data-focus": key }, `${attempt.action}, ${took}${attempt.error ? `, failed: ${attempt.error}` : ""}`),
        make("ol", {}, ...attempt.steps.map((step) =>
          make("li", {}, `+${(step.at - attempt.at).toFixed(2)} s ${step.container}: ${step.step}`))));
    }));
}

// -- charts

/** A chart of one or two lines over the last hour. Where nobody looked, there is a gap. */
function chart(parent, key, title, lines) {
  let one = charts.get(key);
  if (!one) {
    const root = make("div", { class: "chart", role: "img" });
    const heading = make("p", { class: "chart-title" });
    parent.append(heading, root);
    one = { root, heading, plot: null, width: 0 };
    charts.set(key, one);
  }
  const times = [], columns = lines.map(() => []);
  points.forEach((point, place) => {
    const last = times.at(-1);
    if (last !== undefined && point.at - last > 4 * POINT_SECONDS) {
      times.push(last + POINT_SECONDS);
      columns.forEach((column) => column.push(null));
    }
    times.push(point.at);
    columns.forEach((column, line) => column.push(lines[line][2][place]));
  });
  const words = lines.map(([name, unit, values]) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    return known.length ? `${name} now ${Math.round(known.at(-1))} ${unit}, from ${Math.round(Math.min(...known))} to ${Math.round(Math.max(...known))}` : `${name} unknown`;
  });
  one.root.setAttribute("aria-label", `${title} over the last hour: ${words.join("; ")}`);
  one.heading.replaceChildren("Last hour: ", ...lines.flatMap(([name, unit], place) => [
    place ? ", " : "", make("span", { class: `key-${place + 1}` }, `${name} (${unit})`)]));
  const width = Math.max(parent.clientWidth - 26, 120);
  const now = shown.at;
  const window = { min: Math.max(now - HOUR, Math.min(times[0] ?? now, now - SHORTEST)), max: now };
  if (one.plot && one.width === width) {
    one.plot.setData([times, ...columns], false);
    one.plot.setScale("x", window);
    return;
  }
  one.plot?.destroy();
  one.width = width;
  one.plot = plot(one.root, width, lines, [times, ...columns]);
  one.plot.setScale("x", window);
}

function plot(root, width, lines, data) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const units = [...new Set(lines.map(([, unit]) => unit))];
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = (unit, place) => ({
    scale: unit, side: place ? 1 : 3, size: 46, stroke: colour("--quiet"), grid: place ? { show: false } : grid,
    ticks: { show: false }, values: (_, values) => values.map((value) => (value === null ? "" : `${value} ${unit}`)),
  });
  const scales = { x: { time: true, range: (_, min, max) => [min, max] } };
  for (const unit of units) {
    scales[unit] = { range: unit === "%" ? [0, 100] : (_, min, max) => [0, Math.max(10, Math.ceil((max ?? 0) * 1.15))] };
  }
  return new uPlot({
    width, height: 120, legend: { show: false }, cursor: { show: false }, scales,
    axes: [{ stroke: colour("--quiet"), grid: { show: false }, ticks: { show: false }, space: 60, size: 26, values: clock }, ...units.map(axis)],
    series: [{}, ...lines.map(([name, unit], place) => ({
      label: name, scale: unit, stroke: colour(`--chart-${place + 1}`), width: 1.5, spanGaps: false, points: { show: data[0].length < 3 },
    }))],
  }, data, root);
}

const clock = (_, values) =>
  values.map((value) => new Date(value * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));

function redraw() {
  for (const one of charts.values()) one.width = 0;
  if (shown && !shown.problem) showMachine(shown);
}

addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// -- wishes

async function wish(path, body) {
  const reply = await fetch(path, {
    method: "POST",
    headers: { "authorization": `Bearer ${sessionStorage.getItem(TOKEN)}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await reply.json().catch(() => ({}));
  if (reply.status === 401) lock();
  if (!reply.ok) throw new Error(answer.error ?? `HTTP ${reply.status}`);
  return answer;
}

function lock() {
  sessionStorage.removeItem(TOKEN);
  if (shown) show(shown);
}

/** Ask before anything is done; `go` is called with the fields, and its error is shown. */
function ask(title, text, fields, goWords, go) {
  const dialog = byId("dialog");
  byId("dialog-title").textContent = title;
  byId("dialog-text").textContent = text;
  byId("dialog-fields").replaceChildren(...fields);
  byId("dialog-error").textContent = "";
  byId("dialog-go").textContent = goWords;
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    byId("dialog-go").disabled = true;
    try {
      await go();
      dialog.close();
    } catch (error) {
      byId("dialog-error").textContent = error.message;
    } finally {
      byId("dialog-go").disabled = false;
    }
  };
  byId("dialog-cancel").onclick = () => dialog.close();
  const opener = focused();
  dialog.onclose = () => focusOn(opener); // by then drawn anew, which the browser does not know
  dialog.showModal();
}

function choice(label, options) {
  const select = make("select", {}, ...options.map(([value, words]) => make("option", { value: String(value) }, words)));
  return [make("label", {}, `${label} `, select), select];
}

function askHeal(one) {
  const [label, select] = choice("Action", [
    ["restart", "restart it"], ["runner", "end only the runner that a model is stalled in"],
    ["recreate", "recreate it: the same container, made anew"],
    ["redeploy", "redeploy its service"], ["stop", "stop it"],
  ]);
  ask(`Heal ${one.container}?`, "Unless only its runner is ended, its users are cut off until it is back.", [label], "Heal", () =>
    wish("/api/heal", { name: one.container, action: select.value }));
}

function askPause(name) {
  const [label, select] = choice("For", [[900, "15 minutes"], [3600, "1 hour"], [28800, "8 hours"], [86400, "1 day"], [604800, "1 week"]]);
  ask(name ? `Leave ${name} alone?` : "Leave everything alone?", "Nothing is healed meanwhile; then it goes on by itself.",
    [label], "Pause", () => wish("/api/pause", { ...(name ? { name } : {}), seconds: Number(select.value) }));
}

byId("pause").addEventListener("click", () => {
  if (shown.paused_until && shown.paused_until > shown.at) wish("/api/resume", {}).catch(() => {});
  else askPause(null);
});

byId("unlock").addEventListener("click", () => {
  if (sessionStorage.getItem(TOKEN) !== null) {
    lock();
    return;
  }
  const input = make("input", { type: "password", autocomplete: "off", required: true });
  ask("Unlock the buttons", "The token is what AUTOHEAL_WEB_TOKEN was set to. This tab keeps it until it is closed.",
    [make("label", {}, "Token ", input)], "Unlock", async () => {
      sessionStorage.setItem(TOKEN, input.value);
      await wish("/api/unlock", {});
      show(shown);
    });
});

for (const id of ["find", "only-watched"]) {
  byId(id).addEventListener("input", () => shown && showContainers(shown));
}

loadHistory().then(connect);
