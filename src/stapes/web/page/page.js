/** The page: the model is loaded, and everything is tied together. */

import { eventsToCsv, findEvents, loadModel, toWav } from "./engine/engine.js";
import { Announcer } from "./announcer.js";
import { top } from "./bars.js";
import { Controls } from "./controls.js";
import { download } from "./download.js";
import { element } from "./element.js";
import { clock, count, percent, readable, roughly, time } from "./format.js";
import { acceptFiles } from "./inputs.js";
import { factsLine, factsList } from "./model-facts.js";
import { Session } from "./session.js";
import { Shelf } from "./shelf.js";
import { Status } from "./status.js";
import { Workbench } from "./workbench.js";

/** @typedef {import("./item.js").Item} Item */

document.documentElement.dataset.scripted = "";
const choose = element("choose", HTMLButtonElement);
const microphone = element("microphone", HTMLButtonElement);
const announcer = new Announcer(element("announcer"));
const status = new Status({
  root: element("status"),
  text: element("status-text"),
  progress: element("progress", HTMLProgressElement),
  cancel: element("cancel", HTMLButtonElement),
  problem: element("problem"),
  problemText: element("problem-text"),
  dismiss: element("dismiss", HTMLButtonElement),
  home: choose,
});

status.set("loading", { text: "Loading the model", fraction: null });
/** @type {File[]} */
let early = []; // dropped while the model is loaded
let openFiles = (/** @type {File[]} */ files) => {
  early.push(...files);
};
acceptFiles(
  { zone: element("zone"), choose, picker: element("picker", HTMLInputElement) },
  (files) => openFiles(files),
);
try {
  await start(await loadModel());
} catch (error) {
  status.set("broken");
  status.fail(error instanceof Error ? error.message : String(error));
}

/** @param {import("./engine/engine.js").Model} model */
async function start(model) {
  const { info } = model;
  describe(info);
  const controls = new Controls(element("controls"), {
    events: () => workbench.resettle(),
    hop: () => session.rescore(),
  });
  controls.open(info);
  const workbench = new Workbench(
    info,
    () => controls.settings,
    (label, text) => announcer.lead(label, text),
    (sentence) => status.fail(sentence),
  );
  const session = new Session(model, {
    hopSeconds: (item) => controls.hopFor(item.file ? "recording" : "microphone"),
    changed,
    selected,
    failed: (sentence) => {
      status.fail(sentence);
      tell();
    },
  });
  const shelf = new Shelf(
    element("shelf"),
    element("shelf-list", HTMLUListElement),
    info.labels,
    (item) => session.select(item),
  );

  openFiles = (files) => {
    status.clear();
    void session.open(files);
  };
  microphone.addEventListener("click", () => {
    status.clear();
    if (session.listening) {
      void session.stopListening();
      return;
    }
    controls.suit("microphone");
    void session.listen().then(() => {
      if (session.listening) announcer.say("Listening.");
      tell();
    });
    tell();
  });
  element("cancel").addEventListener("click", () => session.cancel());
  element("csv").addEventListener("click", () => {
    if (session.selected) saveEvents([session.selected], session.selected.name);
  });
  element("csv-all").addEventListener("click", () => {
    saveEvents(
      session.items.filter((item) => item.scores.length > 0),
      "events",
    );
  });
  element("wav").addEventListener("click", () => {
    const { selected: item } = session;
    if (item?.recording) download(toWav(item.recording), `${item.name}.wav`);
  });
  choose.disabled = microphone.disabled = false;
  tell();
  announcer.say("The model is ready.");
  if (early.length) openFiles(early);
  setInterval(() => session.listening && tell(), 250);

  /** @param {Item} item */
  function selected(item) {
    element("sound").hidden = element("events").hidden = false;
    element("sound-name").textContent = item.name;
    element("zone").classList.add("small");
    controls.suit(item.file ? "recording" : "microphone");
    workbench.open(item);
    changed(item);
  }

  /** @param {Item} item */
  function changed(item) {
    workbench.update(item);
    if (item === session.selected && item.state === "failed") {
      status.fail(session.items.length > 1 ? `${item.name}: ${item.problem}` : item.problem);
    }
    if (item === session.selected && item.state === "done") announceAnswer(item);
    tell();
  }

  /** @param {Item} item */
  function announceAnswer(item) {
    if (!item.answer) return;
    const [best] = top(item.answer, 1);
    announcer.say(
      `${item.name}: ${readable(info.labels[best])}, ${percent(item.answer[best])}; ` +
        `${count(workbench.events.length, "event")}.`,
    );
  }

  /** Say what is being done. */
  function tell() {
    const { items, selected: item, listening } = session;
    shelf.show(items, item);
    microphone.classList.toggle("listening", listening);
    element("microphone-label").textContent = listening ? "Stop listening" : "Microphone";
    controls.hopEnabled = !listening;
    element("hop-note").textContent = listening
      ? "Fixed while listening"
      : "From one window to the next";
    element("wav").hidden = !item || item.file !== null || !item.recording;
    element("csv-all").hidden = items.filter((other) => other.scores.length > 0).length < 2;
    const facts = item?.samples
      ? [time(item.duration), `${(item.samples.rate / 1000).toLocaleString("en")}\u00a0kHz`]
      : [];
    element("sound-facts").textContent =
      item?.state === "failed" ? "cannot be used" : facts.join(" · ");

    const busy = items.find((other) => ["decoding", "computing"].includes(other.state));
    const heard = items.find((other) => other.state === "listening");
    if (listening && !heard) {
      status.set("listening", { text: "Waiting for the microphone: the browser asks for it" });
    } else if (heard && !heard.scores.length) {
      const wait = Math.max(0, info.window_seconds - heard.duration);
      status.set("listening", {
        text: `Listening: first answer after ${info.window_seconds}\u00a0s`,
        fraction: 1 - wait / info.window_seconds,
      });
    } else if (heard) {
      status.set("listening", { text: `Listening: ${clock(heard.duration)}` });
    } else if (busy?.state === "decoding") {
      status.set("decoding", { text: `Reading ${busy.name}`, fraction: null, cancel: true });
    } else if (busy) {
      const left = busy.secondsLeft === null ? "" : `, ${roughly(busy.secondsLeft)} left`;
      const done = Math.round(100 * busy.progress);
      status.set("computing", {
        text: `Computing ${busy.name}: ${done}\u00a0%${left}`,
        fraction: busy.progress || null,
        cancel: true,
      });
    } else {
      status.set("ready", { text: item ? finished(item) : "" });
    }
  }

  /** @param {Item} item */
  function finished(item) {
    if (item.state === "failed") return "Nothing was computed";
    if (item.state === "stopped") {
      return item.scores.length ? "Stopped: this is what is known so far" : "Stopped";
    }
    return item.seconds ? `Computed in ${time(item.seconds)}` : "";
  }

  /** @param {Item[]} items @param {string} name */
  function saveEvents(items, name) {
    const { threshold, release, smoothing } = controls.settings;
    const tables = items.map((item) =>
      eventsToCsv(
        findEvents(item.scores, info.labels, { threshold, release, smoothing }),
        item.name,
      ),
    );
    // One line of names is enough for all.
    const rows = tables.map((table, i) => (i ? table.slice(table.indexOf("\n") + 1) : table));
    download(new Blob(rows, { type: "text/csv" }), `${name}.csv`);
  }
}

/** @param {import("./engine/engine.js").Model["info"]} info */
function describe(info) {
  document.title = `${info.name} · stapes`;
  element("model-name").textContent = info.name;
  element("model-facts").textContent = factsLine(info);
  const list = element("about-list");
  for (const [term, said] of factsList(info)) {
    const [name, text] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = term;
    text.textContent = said;
    list.append(name, text);
  }
  element("origin").textContent = `Made with stapes ${info.stapes}`;
}
