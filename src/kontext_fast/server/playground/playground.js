// The playground of kontext-fast: one edit at a time, through the same API that programs use.
"use strict";

const $ = (id) => document.getElementById(id);
const SOURCE_NAME = "image.png";

let service = null; // what /v1/models says
let source = null; // the input image as a Blob, or null
let running = null; // the AbortController of the edit that runs
let result = null; // the Blob of the last result
let resultSource = null; // the input image that it was made from

// ---- what is served

async function connect() {
  try {
    const response = await fetch("v1/models", { headers: authorization() });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error.message);
    showService(answer.data[0]);
  } catch (error) {
    $("service").textContent = `Not ready: ${error.message}`;
    $("run").disabled = true;
    setTimeout(connect, 2000);
  }
}

function showService(model) {
  service = model.kontext;
  const machine = service.environment.gpu ? service.environment.gpu.name : service.environment.cpu;
  $("service").textContent = `${model.id} on ${machine || "this machine"}`;
  $("caution").textContent = service.caution || "";
  $("caution").hidden = !service.caution;
  $("preset").replaceChildren(...service.presets.map((preset) => new Option(preset.name, preset.name)));
  $("lora").replaceChildren(new Option("none", ""), ...service.loras.map((name) => new Option(name, name)));
  $("lora-row").hidden = service.loras.length === 0;
  $("steps").value = service.steps;
  $("steps").max = service.max_steps;
  $("guidance").value = service.guidance;
  $("run").disabled = false;
  showVerdict();
}

function showVerdict() {
  const preset = service.presets.find((known) => known.name === $("preset").value);
  $("verdict").textContent = `${preset.summary[0].toUpperCase()}${preset.summary.slice(1)}. ${preset.verdict.sentence}`;
}

function authorization() {
  return $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
}

// ---- the input image

function take(file) {
  if (!file) return;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
    showError("That is no PNG, JPEG or WebP image.");
    return;
  }
  showError("");
  source = file;
  setPicture($("input"), file);
  $("drop-hint").hidden = true;
  $("clear").hidden = false;
  $("run").textContent = "Edit";
}

function removeSource() {
  source = null;
  $("file").value = "";
  $("input").hidden = true;
  $("drop-hint").hidden = false;
  $("clear").hidden = true;
  $("run").textContent = "Draw";
}

function setPicture(element, blob) {
  if (element.src.startsWith("blob:")) URL.revokeObjectURL(element.src);
  element.src = URL.createObjectURL(blob);
  element.hidden = false;
}

// ---- an edit

function parameters() {
  const values = {
    prompt: $("prompt").value.trim(),
    preset: $("preset").value,
    steps: $("steps").value,
    guidance: $("guidance").value,
    seed: $("seed").value,
    size: $("size").value.trim(),
    negative_prompt: $("negative").value.trim(),
    true_cfg: $("true-cfg").value === "1" ? "" : $("true-cfg").value,
    lora: $("lora").value,
  };
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
}

const NUMBERS = ["steps", "guidance", "seed", "true_cfg", "partial_images"];

function send(values, signal) {
  const asked = { ...values, partial_images: $("partials").value, stream: "true", progress: "true" };
  if (source) {
    const body = new FormData();
    for (const [name, value] of Object.entries(asked)) body.append(name, value);
    body.append("image", source, SOURCE_NAME);
    return fetch("v1/images/edits", { method: "POST", body, signal, headers: authorization() });
  }
  for (const name of NUMBERS) if (name in asked) asked[name] = Number(asked[name]);
  const body = JSON.stringify({ ...asked, stream: true, progress: true });
  const headers = { "Content-Type": "application/json", ...authorization() };
  return fetch("v1/images/generations", { method: "POST", body, signal, headers });
}

async function run(event) {
  event.preventDefault();
  if (running || !service || !$("form").reportValidity()) return;
  running = new AbortController();
  const values = parameters();
  const began = performance.now();
  begin();
  try {
    const response = await send(values, running.signal);
    if (!response.ok) throw await failure(response);
    for await (const message of messages(response.body)) receive(message, values, began);
  } catch (error) {
    if (error.name === "AbortError") setStatus("Cancelled.");
    else {
      setStatus("");
      showError(error.message || "The connection to the server was lost.");
    }
  } finally {
    running = null;
    end();
  }
}

async function failure(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between us and the server answered; its status is all there is.
  }
  const wait = response.headers.get("Retry-After");
  return new Error(wait ? `${message} (${wait} s)` : message);
}

async function* messages(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("");
      if (data) yield JSON.parse(data);
    }
  }
}

function receive(message, values, began) {
  if (message.error) throw new Error(message.error.message);
  if (message.type === "kontext.started") setStatus("Running.");
  else if (message.type === "kontext.step") {
    $("progress").value = message.done / message.total;
    setStatus(`Step ${message.done} of ${message.total}`);
  } else if (message.type.endsWith(".partial_image")) showPartial(blobOf(message));
  else if (message.type.endsWith(".completed")) showResult(message, values, (performance.now() - began) / 1000);
}

function blobOf(message) {
  const bytes = Uint8Array.from(atob(message.b64_json), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: `image/${message.output_format}` });
}

// ---- what is shown

function begin() {
  $("run").disabled = true;
  $("cancel").hidden = false;
  $("progress").hidden = false;
  $("progress").value = 0;
  showError("");
  setStatus("Waiting for its turn.");
  // On a phone the form covers the screen.
  $("stage").scrollIntoView({ block: "nearest" });
}

function end() {
  $("run").disabled = false;
  $("cancel").hidden = true;
  $("progress").hidden = true;
}

function setStatus(text) {
  $("status").textContent = text;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function showPartial(blob) {
  $("empty").hidden = true;
  $("before").hidden = $("divider").hidden = $("compare-label").hidden = true;
  $("actions").hidden = $("facts").hidden = true;
  $("after").style.clipPath = "none";
  $("after").dataset.kind = "partial";
  setPicture($("after"), blob);
}

function showResult(message, values, seconds) {
  const made = message.kontext;
  result = blobOf(message);
  resultSource = source;
  showPartial(result);
  $("after").dataset.kind = "result";
  if (resultSource) {
    setPicture($("before"), resultSource);
    $("compare-label").hidden = $("divider").hidden = false;
    compare();
  }
  setStatus(`Done in ${seconds.toFixed(2)} s.`);
  showFacts([
    ["Seconds", `${made.run_s.toFixed(2)} running, ${made.queue_s.toFixed(2)} in the queue, ${seconds.toFixed(2)} in all`],
    ["On the way", `${made.preview_s.toFixed(2)} s of it for images on the way`],
    ["Preset", `${made.preset}, ${made.computed_steps} of ${made.steps} steps computed`],
    ["Quality", made.verdict.sentence],
    ["Size", `${made.width}x${made.height}`],
    ["Seed", String(made.seed)],
  ]);
  $("actions").hidden = false;
  $("download").href = $("after").src;
  remember(result, resultSource);
  showCode({ ...values, seed: String(made.seed) });
}

function showFacts(rows) {
  const cells = rows.flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.textContent = value;
    return [term, description];
  });
  $("facts").replaceChildren(...cells);
  $("facts").hidden = false;
}

function compare() {
  const share = Number($("compare").value);
  const picture = $("after").getBoundingClientRect();
  const stage = $("stage").getBoundingClientRect();
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("divider").style.left = `${picture.left - stage.left + (picture.width * share) / 100 - 1}px`;
}

function remember(blob, before) {
  const entry = document.createElement("li");
  const button = document.createElement("button");
  const picture = document.createElement("img");
  const number = $("history").children.length + 1;
  button.type = "button";
  picture.alt = `Result ${number}; go on from it`;
  picture.src = URL.createObjectURL(blob);
  button.append(picture);
  button.addEventListener("click", () => take(new File([blob], SOURCE_NAME, { type: blob.type })));
  entry.append(button);
  $("history").append(entry);
  $("history").hidden = false;
}

function goOn() {
  take(new File([result], SOURCE_NAME, { type: result.type }));
  $("prompt").value = "";
  $("prompt").focus();
  setStatus("The result is the input now. Say what to change next.");
}

// ---- the same from a program

function showCode(values) {
  const base = new URL(".", location.href).href;
  $("curl").textContent = source ? curlOfEdit(base, values) : curlOfDrawing(base, values);
  $("python").textContent = python(base, values);
  $("code").hidden = false;
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curlOfEdit(base, values) {
  const fields = Object.entries(values).map(([name, value]) => `  --form-string ${quoted(`${name}=${value}`)} \\`);
  return [`curl ${base}v1/images/edits${curlKey()} \\`, "  -F image=@photo.png \\", ...fields, curlEnd()].join("\n");
}

function curlOfDrawing(base, values) {
  const body = quoted(JSON.stringify(withNumbers(values)));
  return [
    `curl ${base}v1/images/generations${curlKey()} \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -d ${body} \\`,
    curlEnd(),
  ].join("\n");
}

const curlKey = () => ($("key").value ? ' -H "Authorization: Bearer $KONTEXT_API_KEY"' : "");
const curlEnd = () => "  | jq -r '.data[0].b64_json' | base64 -d > edited.png";

function withNumbers(values) {
  const typed = Object.entries(values).map(([name, value]) => [name, NUMBERS.includes(name) ? Number(value) : value]);
  return Object.fromEntries(typed);
}

function python(base, values) {
  const { prompt, size, ...ours } = withNumbers(values);
  const call = source ? "edit" : "generate";
  const lines = [
    "import base64",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${base}v1`)}, api_key="${$("key").value ? "YOUR KEY" : "none"}")`,
    `answer = client.images.${call}(`,
    ...(source ? ['    image=open("photo.png", "rb"),'] : []),
    `    prompt=${JSON.stringify(prompt)},`,
    ...(size ? [`    size=${JSON.stringify(size)},`] : []),
    `    extra_body={${Object.entries(ours).map(([name, value]) => `"${name}": ${JSON.stringify(value)}`).join(", ")}},`,
    ")",
    'open("edited.png", "wb").write(base64.b64decode(answer.data[0].b64_json))',
  ];
  return lines.join("\n");
}

async function copy(event) {
  const button = event.currentTarget;
  const text = $(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without a secure origin a browser gives no clipboard: mark the text, so that it can be copied by hand.
    getSelection().selectAllChildren($(button.dataset.copy));
    button.textContent = "Marked";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// ---- what people do

$("form").addEventListener("submit", run);
$("cancel").addEventListener("click", () => running && running.abort());
$("file").addEventListener("change", (event) => take(event.target.files[0]));
$("clear").addEventListener("click", removeSource);
$("preset").addEventListener("change", showVerdict);
$("key").addEventListener("change", () => service || connect());
$("compare").addEventListener("input", compare);
$("go-on").addEventListener("click", goOn);
addEventListener("resize", () => $("divider").hidden || compare());
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);

addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});

removeSource();
connect();
