// The page: draw cached, draw dense, compare. One after the other, so that neither takes time from the other.

import { psnr, skipMap } from "./compare.js";
import { draw, get, Refused } from "./stream.js";

const at = (selector) => document.querySelector(selector);
const key = () => at("#key").value.trim();
let backends = [];
let stopper = null;

function problem(text, field) {
  at("#problem").textContent = text;
  at("#problem").hidden = !text;
  for (const each of document.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

function explain(error) {
  if (error.name === "AbortError") return "Stopped.";
  if (error instanceof Refused) {
    if (error.status === 401) at("#key-field").hidden = false;
    return `${error.message}${error.status ? ` (HTTP ${error.status})` : ""}`;
  }
  return error instanceof TypeError ? `The server cannot be reached: ${error.message}` : error.message;
}

async function ask() {
  try {
    const [served, found] = await Promise.all([get("/v1/models", key()), get("/v1/cache_backends", key())]);
    const model = served.data[0];
    backends = found.data;
    at("#model").textContent = `${model.id} (${model.pipeline})`;
    at("#steps").max = model.limits.max_steps;
    at("#backend").replaceChildren(...backends.map((each) => new Option(each.id, each.id)));
    at("#backend").value = model.cache_backend ?? "cache_dit";
    if (model.cache_backend) at("#config").value = Object.keys(model.cache_config).length ? JSON.stringify(model.cache_config) : "";
    problem("");
    showOptions();
  } catch (error) {
    problem(explain(error), error.status === 401 ? at("#key") : undefined);
    at("#model").textContent = "Nothing is known of the server yet.";
  }
}

function showOptions() {
  const chosen = backends.find((each) => each.id === at("#backend").value);
  at("#summary").textContent = chosen?.summary ?? "";
  at("#options dl").replaceChildren(...(chosen?.options ?? []).flatMap((option) => {
    const name = document.createElement("dt"), meaning = document.createElement("dd");
    name.textContent = `${option.name}: ${option.type}, ${option.required ? "required" : `default ${option.default}`}`;
    meaning.textContent = option.help;
    return [name, meaning];
  }));
}

// The cache settings that the form says; throws a message for a reader.
function options() {
  const text = at("#config").value.trim();
  if (!text) return {};
  let given;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new Error(`The options are not valid JSON: ${error.message}. Write, for example, {"residual_diff_threshold": 0.12}.`);
  }
  if (given === null || typeof given !== "object" || Array.isArray(given)) {
    throw new Error('The options are a JSON object from names to values, such as {"residual_diff_threshold": 0.12}.');
  }
  return given;
}

function clear(figure) {
  const picture = figure.querySelector("img");
  picture.hidden = true;
  picture.removeAttribute("src");
  figure.querySelector("progress").value = 0;
  figure.querySelector(".told").textContent = "Waiting ...";
}

async function show(figure, body, signal) {
  const bar = figure.querySelector("progress"), told = figure.querySelector(".told");
  const steps = [];
  let picture;
  for await (const event of draw(body, key(), signal)) {
    if (event.type === "image_generation.step") {
      if (event.index === 0) steps.length = 0;
      steps.push(event);
      bar.max = event.total ?? body.num_inference_steps;
      bar.value = event.index + 1;
      told.textContent = `Step ${event.index + 1} of ${bar.max}`;
    } else {
      picture = event;
    }
  }
  const image = figure.querySelector("img");
  image.src = `data:image/png;base64,${picture.b64_json}`;
  image.alt = `${body.prompt} (${figure.id})`;
  await image.decode();
  image.hidden = false;
  // Of the steps alone: a request may have waited.
  const seconds = steps.reduce((sum, step) => sum + step.seconds, 0);
  told.textContent = `${seconds.toFixed(3)} s in ${steps.length} steps`;
  return { ...picture, steps, seconds };
}

function table(steps) {
  at("#map tbody").replaceChildren(...steps.map((step) => {
    const row = document.createElement("tr");
    for (const value of [step.index, step.blocks_run, step.blocks_skipped, step.reason, step.seconds.toFixed(4)]) {
      row.insertCell().textContent = value;
    }
    return row;
  }));
}

async function verdict(dense, cached) {
  const counted = skipMap(at("#skip-map"), cached.steps);
  table(cached.steps);
  at("#map").hidden = false;
  const decibels = await psnr(dense, cached);
  at("#speed-up").textContent = `${(dense.seconds / cached.seconds).toFixed(2)}x`;
  at("#psnr").textContent = Number.isFinite(decibels) ? `${decibels.toFixed(1)} dB` : "equal";
  at("#skipped").textContent = `${counted.skipped} of ${counted.run + counted.skipped}`;
  at("#hits").textContent = `${counted.cached} of ${cached.steps.length}`;
  at("#verdict").hidden = false;
}

async function submit(event) {
  event.preventDefault();
  problem("");
  let given;
  try {
    given = options();
  } catch (error) {
    problem(error.message, at("#config"));
    return;
  }
  const backend = at("#backend").value;
  const body = {
    prompt: at("#prompt").value,
    num_inference_steps: at("#steps").valueAsNumber,
    seed: at("#seed").valueAsNumber,
  };
  const figures = [at("#dense"), at("#cached")];
  figures.forEach(clear);
  figures[1].querySelector("figcaption").textContent = `Cached: ${backend}`;
  at("#verdict").hidden = at("#map").hidden = true;
  stopper = new AbortController();
  at("#draw").disabled = true;
  at("#stop").disabled = false;
  try {
    // The cached one first: what is wrong with its options is told before the longer one is drawn.
    const cached = await show(figures[1], { ...body, cache_backend: backend, cache_config: given }, stopper.signal);
    const dense = await show(figures[0], { ...body, cache_backend: "none" }, stopper.signal);
    await verdict(dense, cached);
  } catch (error) {
    problem(explain(error));
    for (const figure of figures) {
      if (figure.querySelector("img").hidden) figure.querySelector(".told").textContent = "Not drawn.";
    }
  } finally {
    at("#draw").disabled = false;
    at("#stop").disabled = true;
  }
}

at("#ask").addEventListener("submit", submit);
at("#stop").addEventListener("click", () => stopper?.abort());
at("#backend").addEventListener("change", () => { at("#config").value = ""; showOptions(); });
at("#key").addEventListener("change", ask);
ask();
