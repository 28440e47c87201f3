// What awaits a score, an image or two of one prompt at a time, and the training in between. Everything shown comes
// from /state.
import { by, call, complain, put } from "/static/asking.js";

const [lowest, highest] = [Number(document.body.dataset.lowest), Number(document.body.dataset.highest)];
let state = null; // as the server said last
let byPairs = document.body.dataset.byPairs === "yes"; // two images of a prompt at a time, where there are two
let skipped = []; // keys of what to come back to, behind all others
let given = []; // what this page has answered, the last one last
let times = []; // when answers were given, in ms
let busy = false; // an answer is on its way
let acts = 0; // answers and other acts so far
let pair = null; // the two images that are compared: {key, left, right, answer}
let shown = null; // the image on the page: {key, image, prompt}

// The first two images of a prompt that are compared take one answer.
function answersLeft() {
  const waiting = new Set(state.waiting.map((one) => one.image));
  const both = state.duels.filter((duel) => waiting.has(duel.left) && waiting.has(duel.right));
  return waiting.size - (byPairs ? both.length : 0);
}

function pace() {
  const gaps = times.slice(1).map((time, i) => time - times[i]).filter((gap) => gap < 60000).slice(-20);
  if (gaps.length < 2) return "";
  const seconds = answersLeft() * gaps.reduce((a, b) => a + b) / gaps.length / 1000;
  return seconds < 90 ? `, about ${Math.max(1, Math.round(seconds))} s at this pace` : `, about ${Math.round(seconds / 60)} min at this pace`;
}

// The first that was not skipped, else what was skipped first; `key` names one of them.
function next(found, key) {
  const later = (one) => skipped.indexOf(key(one));
  return [...found].sort((a, b) => later(a) - later(b))[0] ?? null;
}

const keyOf = (duel) => `${duel.left} ${duel.right}`;

function show() {
  complain(state.problem);
  const running = state.training === "running";
  const awaited = state.waiting.length > 0 && !running;
  const duel = awaited && byPairs ? next(state.duels, keyOf) : null;
  const scoring = awaited && duel === null;
  const comparing = !awaited && !running && state.scored > 0 && state.pairs.length > 0; // not another preference's
  by("score").hidden = !scoring;
  by("compare").hidden = duel === null && !comparing;
  by("answering").hidden = !awaited;
  by("train").hidden = awaited || (comparing && state.training === "ended");
  tell(state.tally);
  by("undo").disabled = given.length === 0;
  by("two").setAttribute("aria-pressed", String(byPairs));
  by("alone").hidden = !byPairs;
  put("help", duel ? "Keys ← and → for the better one, ↑ for neither." : "Keys 1–9 and 0 for 10; Z enlarges.");
  const trained = state.epoch ? `epoch ${state.epoch} of ${state.epochs} is trained; ` : "";
  if (awaited) {
    put("progress", `${trained}${state.waiting.length} left, ${state.scored} scored${pace()}`);
    if (duel) meet(duel);
    else present(next(state.waiting, (one) => one.image));
    return;
  }
  shown = null;
  const left = comparing ? `; ${state.pairs.length} pairs left` : "";
  put("progress", `${trained}${state.scored} images scored${left}`);
  if (comparing) heldOut(state.pairs[0]);
  by("draw").hidden = running || !state.trained || state.training !== "ended" || comparing || state.tally !== null;
  by("log").textContent = state.log.join("\n");
  const [doing, advice, button] = {
    running: ["Training", "New images appear here by themselves. You may close this page.", ""],
    ended: ["Done", "The adapter is in models/lora; `make repro` measures it.", ""],
    failed: ["The run ended", "Its last lines say why. What was answered is kept.", "Run again"],
    none: state.scored ? ["All is scored", "Go on with the training.", "Go on"]
      : ["Nothing is drawn yet", "Begin draws the first images; then you score them.", "Begin"],
  }[state.training];
  by("doing").textContent = doing;
  by("advice").textContent = advice;
  by("start").textContent = button;
  by("start").hidden = !button;
}

const address = (image) => `/images/${encodeURIComponent(image)}`;

// One image.
function present(one) {
  pair = null;
  if (shown !== null && shown.key === one.image) return;
  shown = { key: one.image, path: "/answers", answer: (score) => ({ image: one.image, score }) };
  by("image").src = address(one.image);
  by("image").alt = one.prompt;
  by("prompt").textContent = one.prompt;
  slide((lowest + highest) / 2);
}

// Two images of a prompt.
function meet(duel) {
  shown = null;
  const answer = (better) => ({ left: duel.left, right: duel.right, better });
  confront({ key: keyOf(duel), path: "/comparisons", answer, left: address(duel.left), right: address(duel.right) });
  put("question", "Which one fits better?");
  put("caption", duel.prompt);
  by("caption").hidden = by("ask").getAttribute("aria-pressed") !== "true";
  by("blind").hidden = true;
}

// The images of a held-out caption with this number, before and after fine-tuning.
function heldOut(number) {
  const key = `held out ${number}`;
  const answer = (preferred) => ({ pair: number, preferred });
  if (pair?.key !== key) call(`/pairs/${number}`).then((caption) => put("caption", caption)).catch(() => {});
  confront({ key, path: "/pairs", answer, left: `/pairs/${number}/left`, right: `/pairs/${number}/right` });
  put("question", "Which one do you prefer?");
  by("caption").hidden = false;
  by("blind").hidden = false;
}

function confront(two) {
  if (pair?.key === two.key) return;
  pair = two;
  for (const side of ["left", "right"]) by(side).querySelector("img").src = two[side];
}

function tell(tally) {
  by("tally").hidden = tally === null;
  if (tally === null) return;
  const percent = (share) => `${Math.round(100 * share)} %`;
  const share = tally.share === null ? "nothing was preferred"
    : `after is preferred in ${percent(tally.share)} of those decided, 95 % interval ${percent(tally.low)} to ${percent(tally.high)}`;
  put("tally", `Of held-out pairs you preferred ${tally.after} after fine-tuning, ${tally.before} before, `
    + `${tally.neither} neither: ${share}.`);
}

// What a person does; while it is on its way, what else is pressed would be about an image that is answered already.
async function act(work) {
  if (busy) return;
  busy = true;
  acts += 1;
  try {
    state = await work();
    show();
  } catch (error) {
    complain(`This did not reach the disk: ${error.message}. Is \`make feedback\` still running?`);
  } finally {
    busy = false;
  }
}

function reply(one, value) {
  act(async () => {
    const found = await call(one.path, one.answer(value));
    if (one.path !== "/pairs") given.push(one);
    times.push(Date.now());
    return found;
  });
}

function score(value) {
  if (shown !== null && !by("score").hidden) reply(shown, value);
}

function prefer(side) {
  if (pair !== null && !by("compare").hidden) reply(pair, side);
}

const undo = () => {
  if (given.length === 0 || by("answering").hidden) return;
  act(async () => {
    const last = given.at(-1);
    const found = await call(last.path, last.answer(null));
    given.pop();
    byPairs = last.path === "/comparisons";
    skipped = skipped.filter((key) => key !== last.key);
    const again = (key) => (a, b) => (key(b) === last.key) - (key(a) === last.key);
    found.waiting.sort(again((one) => one.image));
    found.duels.sort(again(keyOf));
    return found;
  });
};

function skip() {
  const one = shown ?? pair;
  if (one === null || by("answering").hidden) return;
  skipped = [...skipped.filter((key) => key !== one.key), one.key];
  show();
}

function toggle(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

function slide(value) {
  by("slider").value = value;
  by("value").textContent = Number(value).toFixed(1);
}

for (let value = lowest; value <= highest; value += 1) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = String(value);
  button.addEventListener("click", () => score(value));
  by("keys").append(button);
}
by("slider").addEventListener("input", (event) => slide(event.target.value));
by("give").addEventListener("click", () => score(Number(by("slider").value)));
by("skip").addEventListener("click", skip);
by("undo").addEventListener("click", undo);
by("zoom").addEventListener("click", () => toggle(by("zoom")));
by("ask").addEventListener("click", () => { by("prompt").hidden = by("caption").hidden = !toggle(by("ask")); });
by("two").addEventListener("click", () => { byPairs = toggle(by("two")); show(); });
by("start").addEventListener("click", () => act(() => call("/training", {})));
by("draw").addEventListener("click", () => act(() => call("/drawing", {})));
for (const side of ["left", "right", "neither"]) by(side).addEventListener("click", () => prefer(side));
for (const image of document.images) {
  image.addEventListener("load", () => image.classList.toggle("smooth", image.naturalWidth >= 256));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const key = event.key.toLowerCase();
  const asking = !by("answering").hidden;
  if (/^[0-9]$/.test(key)) score(key === "0" ? highest : Number(key));
  else if (key === "enter" && !(event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement)) score(Number(by("slider").value));
  else if (key === "arrowleft" && !by("compare").hidden) prefer("left");
  else if (key === "arrowright" && !by("compare").hidden) prefer("right");
  else if (key === "arrowup" && !by("compare").hidden) prefer("neither");
  else if (key === "s" && asking) skip();
  else if (key === "u" && asking) undo();
  else if (key === "p" && asking) by("ask").click();
  else if (key === "t" && asking) by("two").click();
  else if (key === "z" && !by("score").hidden) by("zoom").click();
  else return;
  event.preventDefault();
});

// Asks what is new, in nobody's way: an answer that a person's act has overtaken is dropped.
async function watch() {
  if (!busy && (state === null || state.training === "running" || state.waiting.length === 0)) {
    const before = acts;
    try {
      const found = await call("/state");
      if (acts === before) {
        state = found;
        show();
      }
    } catch (error) {
      if (acts === before) complain(`Nothing is heard of \`make feedback\`: ${error.message}. Is it still running?`);
    }
  }
  setTimeout(watch, 1000);
}
watch();
