// The page of the service. The picture stays in the browser and goes to the service with each
// request; names of classes are inserted as text.
(() => {
  const { make, draw, drawMap, drawPoints, drawPath } = marks;
  const byId = (id) => document.getElementById(id);
  const LEAST = 0.02; // the slider's smallest value: all detections come once, and it filters them
  const SHOWN = 1600; // pixels of the longer side on the page; the service gets the picture itself
  const FRAME = 960; // pixels of the longer side of a camera's frame
  const canvas = byId("picture"), boxes = byId("boxes"), list = byId("list"), cut = byId("cut");
  const state = { model: null, picture: null, found: null, size: null, chosen: null, stream: null };

  function tell(text, wrong = false) {
    byId("told").textContent = text;
    byId("told").classList.toggle("wrong", wrong);
  }

  async function ask(path, picture) {
    let answer;
    try {
      answer = await fetch(path, picture
        ? { method: "POST", body: picture, headers: { "content-type": picture.type || "application/octet-stream" } }
        : {});
    } catch {
      throw new Error("The service does not answer.");
    }
    const told = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
    if (!answer.ok) throw new Error(`The service refused the picture: ${told.error}.`);
    return told;
  }

  // --- a picture and its detections -----------------------------------------------------------

  async function open(file) {
    stopCamera();
    state.picture = null; // an answer for the picture before comes too late from now on
    clear();
    const most = state.model.max_bytes;
    if (file.size > most) {
      tell(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; this service takes ${most / 1e6} MB.`, true);
      return;
    }
    tell("Looking for objects …");
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (bitmap) show(bitmap, SHOWN);
    await detect(file, bitmap === null);
  }

  function show(source, most) {
    const [width, height] = [source.videoWidth || source.width, source.videoHeight || source.height];
    const scale = Math.min(1, most / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
    canvas.hidden = false;
    byId("stage").style.setProperty("--ratio", canvas.width / canvas.height);
    byId("stage").classList.add("full");
  }

  async function detect(picture, unseen) {
    state.picture = picture;
    let told;
    try {
      told = await ask(`predict?threshold=${LEAST}`, picture);
    } catch (error) {
      if (state.picture === picture) tell(error.message, true);
      return;
    }
    if (state.picture !== picture) return;
    const [height, width] = told.size;
    if (unseen) show(make("canvas", { width, height }), SHOWN); // such as a TIFF: a plain area
    Object.assign(state, { found: told.detections, size: { width, height }, seconds: told.seconds });
    state.unseen = unseen;
    refresh();
  }

  function clear() {
    Object.assign(state, { found: null, chosen: null });
    boxes.hidden = true;
    list.replaceChildren();
    byId("query").hidden = true;
  }

  function refresh() {
    byId("cut-value").textContent = Number(cut.value).toFixed(2);
    if (!state.found) return;
    const kept = state.found.map((each, at) => ({ ...each, at })).filter((each) => each.score >= cut.value);
    const { width, height } = state.size;
    boxes.hidden = false;
    boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
    boxes.setAttribute("preserveAspectRatio", "none");
    boxes.replaceChildren();
    const unit = width / (canvas.clientWidth || width); // one CSS pixel
    for (const each of kept.slice().reverse()) drawBox(each, unit);
    list.replaceChildren(...kept.map(listed));
    const many = kept.length === 1 ? "1 object" : `${kept.length} objects`;
    const why = state.unseen ? " This browser cannot show the picture, but the boxes are right." : "";
    const frozen = state.model.explains && kept.length ? " Click a box to see where its query looked." : "";
    tell(`${many} of at least ${Number(cut.value).toFixed(2)} in ${(1000 * state.seconds).toFixed(0)} ms.${frozen}${why}`);
    if (state.chosen !== null && !kept.some((each) => each.at === state.chosen)) choose(null);
  }

  const colour = (label) => state.model.colours[label];
  const named = (each) => `${each.name} ${each.score.toFixed(2)}`;
  // Black or white, whichever can be read on a colour (relative luminance, WCAG 2.2).
  function ink(hex) {
    const [r, g, b] = [1, 3, 5].map((i) => (parseInt(hex.slice(i, i + 2), 16) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
  }

  function drawBox(each, unit) {
    const [x1, y1, x2, y2] = each.box;
    const paint = colour(each.label);
    const text = draw("text", { "font-size": 13 * unit, fill: ink(paint) }, named(each));
    const tag = draw("rect", { class: "tag", fill: paint, height: 18 * unit });
    const shape = draw("rect", {
      class: "box pick", x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke: paint, "data-at": each.at,
      role: "button", tabindex: 0, "aria-label": named(each), "aria-pressed": each.at === state.chosen,
    });
    if (each.at === state.chosen) shape.classList.add("chosen");
    shape.addEventListener("click", () => choose(each.at));
    shape.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(each.at);
    });
    boxes.append(shape, tag, text);
    const wide = text.getComputedTextLength() + 8 * unit;
    const left = Math.max(0, Math.min(x1, state.size.width - wide));
    const top = y1 > 18 * unit ? y1 - 18 * unit : Math.max(y1, 0); // inside a box at the upper edge
    for (const [part, places] of [
      [tag, { x: left, y: top, width: wide }], [text, { x: left + 4 * unit, y: top + 13.5 * unit }],
    ]) for (const [name, value] of Object.entries(places)) part.setAttribute(name, value);
  }

  function listed(each) {
    const key = draw("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" },
      draw("rect", { width: 1, height: 1, fill: colour(each.label) }));
    const button = make("button", { type: "button", "aria-pressed": each.at === state.chosen, "data-at": each.at },
      key, make("span", { class: "word" }, each.name), make("output", {}, each.score.toFixed(2)));
    const box = () => boxes.querySelector(`.pick[data-at="${each.at}"]`);
    button.addEventListener("mouseenter", () => box()?.classList.add("hot"));
    button.addEventListener("mouseleave", () => box()?.classList.remove("hot"));
    button.addEventListener("click", () => choose(each.at));
    return make("li", {}, button);
  }

  // --- where a query looked -------------------------------------------------------------------

  async function choose(at) {
    stopCamera();
    state.chosen = at;
    for (const each of document.querySelectorAll("[data-at]")) {
      const mine = Number(each.dataset.at) === at;
      each.setAttribute("aria-pressed", mine);
      each.classList.toggle("chosen", mine);
    }
    byId("query").hidden = at === null || !state.model.explains;
    if (byId("query").hidden) return;
    byId("asked").textContent = `${named(state.found[at])}: looking …`;
    byId("legend").textContent = "";
    byId("views").replaceChildren();
    const picture = state.picture;
    try {
      const told = await ask(`explain?detection=${at}`, picture);
      const url = await shownPicture();
      if (state.picture === picture && state.chosen === at) explain(told, url);
    } catch (error) {
      if (state.picture === picture) tell(error.message, true);
    }
  }

  const shownPicture = () => new Promise((resolve) => canvas.toBlob(
    (blob) => {
      URL.revokeObjectURL(state.url);
      state.url = URL.createObjectURL(blob);
      resolve(state.url);
    }, "image/jpeg", 0.92));

  function explain(told, url) {
    const dense = Boolean(told.looks[0].map);
    byId("asked").textContent = `${named(told)}: query ${told.q}, layer by layer`;
    byId("legend").textContent = dense
      ? "Squares: attention over the whole picture, the mean of the heads, brighter for more. White: the box that the layer predicts."
      : "Dots: where the layer sampled the features, brighter for a larger weight, larger for a coarser level. "
        + "White dashes or a cross: the reference it looked from. White: the box that it predicts.";
    const area = dense ? [0, 0, state.size.width, state.size.height] : zoomed(told);
    byId("views").replaceChildren(...told.path.map((step, at) => panel(told, at, area, url)));
  }

  // One part of the picture for all layers: every box, and the dots that carry weight.
  function zoomed({ path, looks }) {
    const { width, height } = state.size;
    const xs = [], ys = [];
    for (const { b } of path) { xs.push(b[0], b[0] + b[2]); ys.push(b[1], b[1] + b[3]); }
    for (const { points } of looks) {
      let most = 1;
      for (let i = 2; i < points.length; i += 4) most = Math.max(most, points[i]);
      for (let i = 0; i < points.length; i += 4) {
        if (points[i + 2] < 0.3 * most) continue;
        xs.push(points[i] / 1000 * width);
        ys.push(points[i + 1] / 1000 * height);
      }
    }
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const share = Math.min(1, Math.max(0.12, 1.2 * (right - left) / width, 1.2 * (bottom - top) / height));
    const [w, h] = [share * width, share * height];
    const clamp = (x, most) => Math.min(Math.max(x, 0), most);
    return [clamp((left + right - w) / 2, width - w), clamp((top + bottom - h) / 2, height - h), w, h];
  }

  function panel(told, at, area, url) {
    const { width, height } = state.size;
    const look = told.looks[at], step = told.path[at], before = at ? told.path[at - 1].b : step.r;
    const layer = draw("g", { class: "looks" }, draw("rect", { class: "veil", width, height }));
    if (look.map) drawMap(layer, look.map, state.size);
    else drawPoints(layer, look.points, state.size, area[2]);
    drawPath(layer, [step], area[2] / 40);
    layer.lastChild.classList.add("now");
    const middle = (b) => [b[0] + b[2] / 2, b[1] + b[3] / 2];
    const moved = before ? Math.hypot(...middle(step.b).map((x, i) => x - middle(before)[i])) : null;
    const words = `score ${step.s.toFixed(2)}${moved === null ? "" : `, moved ${moved.toFixed(1)} px`}`;
    return make("div", { class: "panel" },
      draw("svg", { viewBox: area.join(" "), role: "img", "aria-label": `layer ${at + 1}: ${words}` },
        draw("image", { href: url, width, height, preserveAspectRatio: "none" }), layer),
      make("p", {}, make("strong", {}, `layer ${at + 1}`), make("br"), make("span", { class: "soft" }, words)));
  }

  // --- the camera -----------------------------------------------------------------------------

  async function startCamera() {
    if (!navigator.mediaDevices) {
      tell("Browsers give the camera only to pages from localhost or https.", true);
      return;
    }
    try {
      state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      tell(`The camera cannot be used: ${error.message}.`, true);
      return;
    }
    clear();
    byId("camera").setAttribute("aria-pressed", true);
    byId("camera").textContent = "Freeze the picture";
    const { stream } = state;
    const video = make("video", { playsinline: "", muted: "" });
    video.srcObject = stream;
    await video.play();
    const frame = make("canvas");
    while (state.stream === stream) {
      const scale = Math.min(1, FRAME / Math.max(video.videoWidth, video.videoHeight));
      frame.width = Math.round(video.videoWidth * scale);
      frame.height = Math.round(video.videoHeight * scale);
      frame.getContext("2d").drawImage(video, 0, 0, frame.width, frame.height);
      const blob = await new Promise((resolve) => frame.toBlob(resolve, "image/jpeg", 0.9));
      if (state.stream !== stream) break;
      show(frame, FRAME);
      await detect(blob, false);
      if (!state.found) stopCamera(); // refused: told already
      await new Promise(requestAnimationFrame);
    }
    for (const track of stream.getTracks()) track.stop();
  }

  function stopCamera() {
    for (const track of state.stream ? state.stream.getTracks() : []) track.stop();
    state.stream = null;
    byId("camera").setAttribute("aria-pressed", false);
    byId("camera").textContent = "Use the camera";
  }

  // --- what a person does -----------------------------------------------------------------------

  const stage = byId("stage");
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("drop").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = ""; // the same file can be chosen again
  });
  byId("camera").addEventListener("click", () => (state.stream ? stopCamera() : startCamera()));
  cut.addEventListener("input", refresh);
  new ResizeObserver(refresh).observe(canvas);
  document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("dragged"); });
  document.addEventListener("dragleave", () => stage.classList.remove("dragged"));
  for (const [kind, carried] of [["drop", "dataTransfer"], ["paste", "clipboardData"]]) {
    document.addEventListener(kind, (event) => {
      stage.classList.remove("dragged");
      const file = event[carried].files[0];
      if (!file) return;
      event.preventDefault();
      open(file);
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });

  ask("model").then((model) => {
    state.model = model;
    document.title = `${model.model} – detrlab`;
    byId("name").textContent = model.model;
    const classes = model.classes;
    const some = classes.slice(0, 8).join(", ") + (classes.length > 8 ? " …" : "");
    byId("about").textContent = `Finds ${classes.length} class${classes.length === 1 ? "" : "es"}: ${some}`;
    cut.value = model.threshold;
    byId("command").textContent = `curl --data-binary @photo.jpg '${new URL("predict", location.href)}'`;
    refresh();
  }).catch((error) => tell(error.message, true));
})();
