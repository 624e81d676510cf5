// Without this script the page is complete and static. With it, tables can be sorted, detectors
// hidden in the charts, and the images explored. Everything from the data is inserted as text.
"use strict";
(() => {
  const { make, draw, drawMap, drawPoints, drawPath } = marks;
  const byId = (id) => document.getElementById(id);

  // --- tables that sort ---------------------------------------------------------------------

  function numberIn(text) {
    const found = text.replace(/,/g, "").match(/[-−]?\d*\.?\d+/);
    return found ? Number(found[0].replace("−", "-")) : null;
  }

  function makeSortable(table) {
    const headers = [...table.querySelectorAll("thead th")];
    const body = table.tBodies[0];
    const original = [...body.rows];
    table.parentElement.removeAttribute("tabindex"); // the buttons can be focused instead
    headers.forEach((header, column) => {
      const button = make("button", { type: "button", class: "sort" }, header.textContent);
      header.replaceChildren(button);
      button.addEventListener("click", () => {
        // First largest number on top or A to Z, then reversed, then the original order.
        const state = header.getAttribute("aria-sort");
        const first = column === 0 ? "ascending" : "descending";
        const other = column === 0 ? "descending" : "ascending";
        const next = state === first ? other : state === other ? null : first;
        headers.forEach((each) => each.removeAttribute("aria-sort"));
        if (next) header.setAttribute("aria-sort", next);
        body.append(...(next ? sorted(original, column, next === "ascending") : original));
      });
    });
  }

  function sorted(rows, column, ascending) {
    const key = (row) => row.cells[column].textContent.trim();
    const sign = ascending ? 1 : -1;
    return [...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (column === 0) return sign * x.localeCompare(y);
      const [p, q] = [numberIn(x), numberIn(y)];
      // Cells without a number come last in both directions.
      if (p === null || q === null) return (p === null) - (q === null);
      return sign * (p - q);
    });
  }

  // Each name in the legend is a button that hides its detector in the charts.
  function makeLegend() {
    for (const item of document.querySelectorAll(".legend li")) {
      const button = make("button", { type: "button", "aria-pressed": "true" }, ...item.childNodes);
      button.title = "show or hide in the charts";
      item.replaceChildren(button);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", shown);
        for (const mark of document.querySelectorAll(`.chart [data-series="${item.dataset.series}"]`)) {
          mark.style.display = shown ? "" : "none";
        }
      });
    }
  }

  // --- the images ---------------------------------------------------------------------------

  const overlap = (a, b) => {
    const w = Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]);
    const h = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
    return w > 0 && h > 0 ? w * h : 0;
  };
  const iou = (a, b) => {
    const both = overlap(a, b);
    return both ? both / (a[2] * a[3] + b[2] * b[3] - both) : 0;
  };

  // COCO's matching at IoU .50: highest score first, each object once; detections on crowd
  // regions are ignored.
  function judge(image, detections, cut) {
    const taken = new Set();
    const kept = [];
    detections.forEach((detection, index) => {
      if (detection.s < cut(detection.l)) return;
      let best = -1, most = 0.5;
      image.truth.forEach((object, g) => {
        const shared = iou(detection.b, object.b);
        if (object.l === detection.l && !object.crowd && !taken.has(g) && shared >= most) {
          [best, most] = [g, shared];
        }
      });
      if (best >= 0) taken.add(best);
      const ignored = best < 0 && image.truth.some((object) => object.crowd
        && object.l === detection.l
        && overlap(detection.b, object.b) >= 0.5 * detection.b[2] * detection.b[3]);
      kept.push({ index, detection, kind: best >= 0 ? "found" : ignored ? "ignored" : "false" });
    });
    const missed = image.truth.map((object, g) => g)
      .filter((g) => !image.truth[g].crowd && !taken.has(g));
    return { kept, missed, found: taken.size };
  }

  function explore(data) {
    const state = { image: 0, chosen: null };
    const control = {
      image: byId("pick-image"), cut: byId("cut"), best: byId("at-best"), truth: byId("with-truth"),
      zoom: byId("zoom-in"), views: byId("views"), told: byId("told"), detail: byId("detail"),
      models: [],
    };
    data.images.forEach((image, index) => {
      control.image.append(make("option", { value: index }, `${index + 1}. ${image.name}`));
    });
    data.models.forEach((model, index) => {
      const box = make("input", { type: "checkbox", checked: "", "data-model": index });
      byId("pick-models").append(make("label", {}, box, ` ${model.name}`));
      control.models.push(box);
      box.addEventListener("change", show);
    });

    const cutOf = (model) => control.best.checked
      ? (label) => data.models[model].best[label]
      : () => Number(control.cut.value);
    const named = (d) => `${data.classes[d.l]} ${d.s.toFixed(2)}`;

    function show() {
      const image = data.images[state.image];
      control.image.value = state.image;
      byId("cut-value").textContent = control.best.checked ? "best F1" : Number(control.cut.value).toFixed(2);
      const views = [];
      const words = [];
      if (control.truth.checked) views.push(annotated(image));
      data.models.forEach((model, index) => {
        if (!control.models[index].checked) return;
        const judged = judge(image, image.models[index].boxes, cutOf(index));
        const summary = `${judged.found} found, ${judged.missed.length} missed, `
          + `${judged.kept.filter((each) => each.kind === "false").length} false`;
        words.push(`${model.name}: ${summary}`);
        views.push(seen(image, index, judged, summary));
      });
      control.views.style.setProperty("--columns", columns(views.length));
      control.views.classList.toggle("choosing", Boolean(state.chosen));
      control.views.replaceChildren(...views);
      control.told.textContent = words.join("; ");
      explain();
    }

    // The number of columns that leaves the fewest gaps in the last row.
    function columns(count) {
      if (count <= 3) return Math.max(count, 2);
      return [3, 4].reduce((best, each) =>
        Math.ceil(count / each) * each - count < Math.ceil(count / best) * best - count ? each : best);
    }

    function panel(image, name, summary, whole = false) {
      const area = state.chosen && control.zoom.checked && !whole
        ? around(state.chosen.b, image) : [0, 0, image.width, image.height];
      const picture = draw("svg", {
        viewBox: area.join(" "), role: "group", "aria-label": `${name}: ${summary}`, class: "view",
      }, draw("use", { href: `#picture-${state.image + 1}` }));
      picture.addEventListener("click", (event) => {
        if (!event.target.closest(".pick")) choose(null);
      });
      walkable(picture);
      const caption = make("p", {}, make("strong", {}, name), make("br"),
        make("span", { class: "soft" }, summary));
      return [picture, make("div", { class: "panel" }, picture, caption)];
    }

    function annotated(image) {
      const count = image.truth.filter((object) => !object.crowd).length;
      const [picture, whole] = panel(image, "annotated", `${count} object${count === 1 ? "" : "s"}`);
      image.truth.forEach((object, g) => {
        const label = data.classes[object.l] + (object.crowd ? " (crowd)" : "");
        const isChosen = state.chosen && state.chosen.truth === g;
        picture.append(rectangle(object.b, `truth${isChosen ? " chosen" : ""}`, `annotated ${label}`,
          () => choose({ truth: g, b: object.b }), isChosen));
      });
      return whole;
    }

    function seen(image, index, judged, summary) {
      const model = data.models[index];
      const mine = state.chosen ? counterpart(image, index) : null;
      // Dense attention covers the whole image; sampling points cover a region of it.
      const [picture, whole] = panel(image, model.name, summary, Boolean(mine && mine.map));
      whole.dataset.model = index;
      if (mine) looks(picture, image, index, mine);
      if (control.truth.checked) {
        judged.missed.forEach((g) => {
          const object = image.truth[g];
          const isChosen = Boolean(state.chosen) && state.chosen.truth === g;
          picture.append(rectangle(object.b, `missed${isChosen ? " chosen" : ""}`,
            `missed ${data.classes[object.l]}`, () => choose({ truth: g, b: object.b }), isChosen));
        });
      }
      judged.kept.slice().reverse().forEach(({ detection, kind, index: at }) => {
        const isChosen = state.chosen && state.chosen.model === index && state.chosen.at === at;
        picture.append(rectangle(detection.b, `${kind}${isChosen ? " chosen" : ""}`,
          `${named(detection)}, ${kind === "false" ? "false alarm" : kind}`,
          () => choose({ model: index, at, b: detection.b, l: detection.l }), isChosen));
      });
      if (state.chosen) whole.append(card(image, index));
      return whole;
    }

    function rectangle(b, kind, label, act, isChosen) {
      const [x, y, width, height] = b;
      const shape = draw("rect", {
        class: `box pick ${kind}`, x, y, width: Math.max(width, 0), height: Math.max(height, 0),
        role: "button", tabindex: -1, "aria-label": label, "aria-pressed": isChosen ? "true" : "false",
      }, draw("title", {}, label));
      shape.addEventListener("click", act);
      shape.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        const place = [...shape.parentNode.querySelectorAll(".pick")].indexOf(shape);
        const view = [...control.views.children].indexOf(shape.closest(".panel"));
        act();
        // The views have been redrawn: focus the same box again.
        const again = control.views.children[view].querySelectorAll(".pick")[place];
        if (again) again.focus();
      });
      return shape;
    }

    // Tab goes from view to view; arrow keys go through the boxes of a view.
    function walkable(picture) {
      picture.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        const boxes = [...picture.querySelectorAll(".pick")];
        const at = boxes.indexOf(document.activeElement);
        if (!step || at < 0) return;
        event.preventDefault();
        boxes[at].setAttribute("tabindex", -1);
        const next = boxes[(at + step + boxes.length) % boxes.length];
        next.setAttribute("tabindex", 0);
        next.focus();
      });
      new MutationObserver(() => {
        const boxes = picture.querySelectorAll(".pick");
        if (boxes.length && !picture.querySelector('.pick[tabindex="0"]')) {
          boxes[boxes.length - 1].setAttribute("tabindex", 0); // drawn last: highest score
        }
      }).observe(picture, { childList: true });
    }

    function around(b, image) {
      const share = Math.min(1, Math.max(0.1, 2.2 * b[2] / image.width, 2.2 * b[3] / image.height));
      const [w, h] = [share * image.width, share * image.height];
      const clamp = (x, most) => Math.min(Math.max(x, 0), most);
      return [clamp(b[0] + b[2] / 2 - w / 2, image.width - w), clamp(b[1] + b[3] / 2 - h / 2, image.height - h), w, h];
    }

    function choose(what) {
      state.chosen = what;
      show();
    }

    // A detector's counterpart of the selected box, at any score: the box itself, or the box that
    // overlaps it most (the same class is preferred), or the query with the lowest matching cost
    // for the annotated object, wherever its box is.
    function counterpart(image, index) {
      const chosen = state.chosen;
      const boxes = image.models[index].boxes;
      if (chosen.model === index) return boxes[chosen.at];
      const label = chosen.truth !== undefined ? image.truth[chosen.truth].l : chosen.l;
      let best = null, most = 0.1;
      for (const box of boxes) {
        const shared = iou(box.b, chosen.b) + (box.l === label ? 0.05 : 0);
        if (shared > most && box.path) [best, most] = [box, shared];
      }
      const truth = chosen.truth !== undefined ? image.truth[chosen.truth] : nearestTruth(image, chosen.b);
      if (best || !truth) return best;
      const why = reason(image, index, truth);
      const known = [...boxes, ...image.models[index].others];
      return (why && known.find((box) => box.path && box.q === why.q)) || null;
    }

    function reason(image, index, truth) {
      return image.models[index].why.find((each) => iou(each.b, truth.b) > 0.98);
    }

    // Where the last decoder layer looked, and the boxes of every layer.
    function looks(picture, image, index, box) {
      const layer = draw("g", { class: "looks" });
      layer.append(draw("rect", { class: "veil", x: 0, y: 0, width: image.width, height: image.height }));
      if (box.map) drawMap(layer, box.map, image);
      if (box.points) drawPoints(layer, box.points, image, picture.viewBox.baseVal.width);
      if (box.path) drawPath(layer, box.path);
      picture.append(layer);
    }

    function explain() {
      if (!state.chosen) {
        control.detail.replaceChildren(make("p", { class: "soft" },
          "Select a box (click it, or Tab to a picture, then arrow keys and Enter) to see where "
          + "each detector looked and how its box changed from layer to layer. Escape ends this."));
        return;
      }
      const image = data.images[state.image];
      const chosen = state.chosen;
      const what = chosen.truth !== undefined
        ? `annotated ${data.classes[image.truth[chosen.truth].l]}`
        : `${data.models[chosen.model].name}: ${named(image.models[chosen.model].boxes[chosen.at])}`;
      const close = make("button", { type: "button" }, "Clear selection");
      close.addEventListener("click", () => { choose(null); control.image.focus(); });
      control.detail.replaceChildren(
        make("h3", {}, `Selected: ${what}`), close,
        make("p", { class: "soft" }, "Dots: sampling points of the last decoder layer (larger: coarser "
          + "level; brighter: larger weight). Squares: weights of dense attention. Dashed white lines: "
          + "reference of the first layer. White lines: box of each layer, the last one brightest."));
    }

    function nearestTruth(image, b) {
      let best = null, most = 0.1;
      for (const object of image.truth) {
        if (iou(object.b, b) > most) [best, most] = [object, iou(object.b, b)];
      }
      return best;
    }

    function card(image, index) {
      const model = data.models[index];
      const box = counterpart(image, index);
      const truth = state.chosen.truth !== undefined
        ? image.truth[state.chosen.truth] : nearestTruth(image, state.chosen.b);
      const parts = [];
      if (!model.explained) {
        parts.push(make("p", { class: "soft" }, "Only the detections of this detector are known, not its network."));
      }
      if (!box) parts.push(make("p", {}, "This detector has no box here."));
      else {
        if (!iou(box.b, state.chosen.b)) parts.push(make("p", {}, "This detector has no box here. Its query with the lowest matching cost:"));
        const cut = cutOf(index)(box.l);
        const query = box.q === undefined ? "" : `, query ${box.q}`;
        const silent = box.s < cut ? `, below its threshold of ${cut.toFixed(2)}` : "";
        parts.push(make("p", {}, `${named(box)}${query}${silent}`));
        if (box.path) parts.push(steps(box.path, truth));
      }
      const why = truth && reason(image, index, truth);
      if (why) {
        parts.push(make("p", { class: "soft" }, `At a threshold of ${image.models[index].threshold}: ${why.words}`));
      }
      return make("div", { class: "card" }, ...parts);
    }

    function steps(path, truth) {
      const head = make("tr", {}, ...["layer", "score", "moved", ...(truth ? ["IoU"] : [])]
        .map((text) => make("th", { scope: "col" }, text)));
      const rows = path.map((step, at) => {
        const before = at ? path[at - 1].b : step.r;
        const moved = before ? Math.hypot(
          step.b[0] + step.b[2] / 2 - before[0] - before[2] / 2,
          step.b[1] + step.b[3] / 2 - before[1] - before[3] / 2).toFixed(1) + " px" : "–";
        return make("tr", {}, make("th", { scope: "row" }, String(at + 1)),
          make("td", {}, step.s.toFixed(2)), make("td", {}, moved),
          ...(truth ? [make("td", {}, iou(step.b, truth.b).toFixed(2))] : []));
      });
      return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    }

    function turn(by) {
      state.image = (state.image + by + data.images.length) % data.images.length;
      state.chosen = null;
      show();
    }
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    control.image.addEventListener("change", () => turn(Number(control.image.value) - state.image));
    control.cut.addEventListener("input", () => { control.best.checked = false; show(); });
    for (const box of [control.best, control.truth, control.zoom]) box.addEventListener("change", show);
    byId("explorer").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.chosen) choose(null);
    });
    byId("explorer").hidden = false;
    document.body.classList.add("explored");
    show();
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  makeLegend();
  const held = byId("exploration");
  if (held) explore(JSON.parse(held.textContent));
})();
