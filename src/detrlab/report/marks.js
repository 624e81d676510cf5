// Where a query looked and how its box moved, drawn over a picture. Shared by detrlab's pages;
// everything that comes from data is inserted as text.
"use strict";
const marks = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, ...children) {
    return dress(document.createElement(tag), attributes, children);
  }
  function draw(tag, attributes = {}, ...children) {
    return dress(document.createElementNS(SVG, tag), attributes, children);
  }
  function dress(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // Dark to bright: matplotlib's plasma, which can be read on a darkened photograph.
  const RAMP = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];
  function heat(share) {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    const mixed = RAMP[low].map((c, i) => Math.round(c + (place - low) * (RAMP[low + 1][i] - c)));
    return `rgb(${mixed.join(",")})`;
  }

  function drawMap(layer, map, image) {
    const [rows, columns] = map.shape;
    const [w, h] = [image.width / columns, image.height / rows];
    map.weights.forEach((weight, cell) => {
      if (weight < 3) return;
      layer.append(draw("rect", {
        class: "cell", x: (cell % columns) * w, y: Math.floor(cell / columns) * h, width: w, height: h,
        fill: heat(weight / 255), opacity: (0.65 * Math.sqrt(weight / 255)).toFixed(2),
      }));
    });
  }

  // ``shown``: the width of the picture's visible part, so that dots keep their size at any zoom.
  function drawPoints(layer, flat, image, shown) {
    const unit = shown / 100;
    let most = 1;
    for (let i = 2; i < flat.length; i += 4) most = Math.max(most, flat[i]);
    const points = [];
    for (let i = 0; i < flat.length; i += 4) points.push(flat.slice(i, i + 4));
    points.sort((a, b) => b[3] - a[3]); // coarse levels below fine ones; stable within a level
    for (const [x, y, weight, level] of points) {
      layer.append(draw("circle", {
        class: "sample", cx: x / 1000 * image.width, cy: y / 1000 * image.height,
        r: (unit * (0.7 + 0.55 * level)).toFixed(2), fill: heat(Math.sqrt(weight / most)),
      }));
    }
  }

  // ``arm``: half the size of the cross at a reference point.
  function drawPath(layer, path, arm = 4) {
    const start = path[0].r;
    if (start) {
      const [x, y, width, height] = start;
      layer.append(width > 0
        ? draw("rect", { class: "step reference", x, y, width, height })
        : draw("path", { class: "step reference", d: `M${x - arm},${y}h${2 * arm}M${x},${y - arm}v${2 * arm}` }));
    }
    path.forEach((step, at) => {
      const [x, y, width, height] = step.b;
      layer.append(draw("rect", {
        class: "step", x, y, width: Math.max(width, 0), height: Math.max(height, 0),
        opacity: (0.35 + 0.65 * (at + 1) / path.length).toFixed(2),
      }));
    });
  }

  return { make, draw, heat, drawMap, drawPoints, drawPath };
})();
