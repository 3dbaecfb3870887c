"use strict";

/*
 * The explorer of a run's latents. Every <section class="explorer"> that holds its data in a
 * <script type="application/json"> is filled with controls: for two latents a map, otherwise a
 * slider a dimension, beside the decoded image. `section.dataset.z` is the z that is shown.
 */
(() => {
  const VISIBLE_SLIDERS = 12;
  const STEPS = 200; // of a slider, from end to end
  const MAP_STEPS = 60; // of an arrow key, from end to end
  const LARGEST_IMAGE = 280, THUMBNAIL = 52; // pixels of the page

  function make(tag, className, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const subscript = (dim) => String(dim).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
  const named = (dim) => `z${subscript(dim)}`;
  const listed = (dims) => dims.map(named).join(", ");
  const signed = (text) => text.replace("-", "−");

  // As many decimals as tell hundredths of the largest scale apart.
  function written(value, data) {
    const digits = 2 - Math.floor(Math.log10(Math.max(...data.scale)) + 0.3);
    return signed(value.toFixed(clamp(digits, 0, 8)).replace(/^-(0\.?0*)$/, "$1"));
  }

  // To hundredths, or three digits where that is more.
  const rounded = (value) => value < 10 ? value.toFixed(2) : String(Number(value.toPrecision(3)));

  const brief = (value) => signed(String(Number(value.toPrecision(3))));

  // The least and the largest value that dimension `dim` is moved to.
  const reach = (data, dim) =>
    [-1, 1].map((sign) => data.mean[dim] + sign * data.span * data.scale[dim]);

  const dimsToMove = (data) => data.program ? data.order : data.grid.dims;

  // The nearest z that can be decoded: a grid has edges, and some dimensions stay.
  function reachable(data, z) {
    if (data.program) return [...z];
    const { dims, low, high } = data.grid;
    const inside = [...data.mean];
    dims.forEach((dim, i) => { inside[dim] = clamp(z[dim], low[i], high[i]); });
    return inside;
  }

  function randomNormal() {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random());
  }

  const colour = (element, name) =>
    getComputedStyle(element).getPropertyValue(`--explorer-${name}`).trim();

  // Channels, height and width of an image; a vector has none.
  function imageShape(shape) {
    if (shape.length === 1) return null;
    return shape.length === 2 ? [1, ...shape] : shape;
  }

  // Numbers in row, [C, H, W], as pixels: `low` is black and `high` is white.
  function paintImage(canvas, numbers, [channels, height, width], [low, high]) {
    const pixels = new ImageData(width, height), size = height * width;
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) {
        const value = numbers[i + (channels === 3 ? c * size : 0)];
        pixels.data[4 * i + c] = (255 * (value - low)) / (high - low);
      }
      pixels.data[4 * i + 3] = 255;
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // A canvas of `width` × `height` pixels of the page, sharp on any screen.
  function sharpContext(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    return context;
  }

  // Lines of vectors over their index; the last one is drawn on top.
  function paintLines(canvas, lines, [low, high], width, height) {
    const context = sharpContext(canvas, width, height), margin = 4;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    for (const { numbers, stroke } of lines) {
      const place = (value, i) => [
        margin + ((width - 2 * margin) * (i + 0.5)) / numbers.length,
        margin + (height - 2 * margin) * (1 - clamp((value - low) / (high - low), 0, 1)),
      ];
      context.strokeStyle = context.fillStyle = stroke;
      context.beginPath();
      numbers.forEach((value, i) => context.lineTo(...place(value, i)));
      context.stroke();
      if (numbers.length > 16) continue;
      numbers.forEach((value, i) => {
        context.beginPath();
        context.arc(...place(value, i), 2.5, 0, 2 * Math.PI);
        context.fill();
      });
    }
  }

  function wholeScale(canvas, [, height, width], room) {
    const scale = Math.max(1, Math.floor(room / Math.max(height, width)));
    canvas.style.width = `${scale * width}px`;
  }

  function makeView(data, x, section) {
    const shape = imageShape(data.event_shape);
    const image = make("canvas", "explorer-image", { role: "img", ariaLabel: "decoded, E[x|z]" });
    const beside = make("canvas", "explorer-beside", { role: "img", ariaLabel: "no datum chosen" });
    const said = make(shape ? "figcaption" : "span");
    const caption = make("figcaption", "", {}, "decoded, E[x|z]", ...(shape ? [] : ["; ", said]));
    const first = make("figure", "", {}, image, caption);
    const second = make("figure", "explorer-empty", {}, beside, ...(shape ? [said] : []));
    const element = make("div", "explorer-view", {}, first, ...(shape ? [second] : []));
    let last = [[], null];

    function show(numbers, datum) {
      last = [numbers, datum];
      const label = datum !== null && data.data.labels ? `, label ${data.data.labels[datum]}` : "";
      const name = datum === null ? "choose a datum below" : `datum ${datum + 1}${label}`;
      said.textContent = name;
      beside.ariaLabel = name;
      second.classList.toggle("explorer-empty", datum === null);
      if (!shape) return showLines(numbers, datum);
      paintImage(image, numbers, shape, data.display);
      if (datum !== null) paintImage(beside, x[datum], shape, data.display);
    }

    function showLines(numbers, datum) {
      const muted = { numbers: x[datum], stroke: colour(section, "muted") };
      const lines = [{ numbers, stroke: colour(section, "accent") }];
      const width = Math.min(element.clientWidth || 300, 460);
      paintLines(image, datum === null ? lines : [muted, ...lines], data.display, width, 200);
      if (datum !== null) said.prepend("in grey ");
    }

    function resize() {
      if (!shape) return show(...last);
      const room = Math.min(LARGEST_IMAGE, (element.clientWidth - 16) / 2);
      [image, beside].forEach((canvas) => wholeScale(canvas, shape, room));
      if (last[1] === null) paintEmpty();
    }

    function paintEmpty() {
      [, beside.height, beside.width] = shape;
    }

    return { element, show, resize };
  }

  function makeSliders(data, change) {
    const rows = dimsToMove(data).map((dim) => makeSlider(data, dim, change));
    const elements = rows.map((row) => row.element);
    const head = make("div", "explorer-row explorer-head", {},
      make("span"), make("span"), make("span", "", {}, "value"), make("span", "", {}, "activity"));
    const element = make("div", "explorer-sliders", {},
      head, ...elements.slice(0, VISIBLE_SLIDERS));
    const rest = elements.slice(VISIBLE_SLIDERS);
    if (rest.length) {
      const title = make("summary", "", {}, `${rest.length} less active`);
      element.append(make("details", "", {}, title, ...rest));
    }
    return { element, show: (z) => rows.forEach((row) => row.show(z)), resize() {} };
  }

  function makeSlider(data, dim, change) {
    const [min, max] = reach(data, dim), activity = rounded(data.activity[dim]);
    const input = make("input", "explorer-slider", { type: "range" });
    Object.assign(input, { min, max, step: (max - min) / STEPS });
    input.dataset.dim = dim;
    input.ariaLabel = `z ${dim}, activity ${activity}`;
    const value = make("output");
    input.addEventListener("input", () => change(dim, input.valueAsNumber));
    const element = make("label", "explorer-row", {},
      make("span", "", {}, named(dim)), input, value, make("span", "", {}, activity));
    function show(z) {
      input.value = z[dim];
      input.setAttribute("aria-valuetext", written(z[dim], data));
      value.textContent = written(z[dim], data);
    }
    return { element, show };
  }

  function makeMap(data, section, current, moveTo) {
    const canvas = make("canvas", "explorer-map", { tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "map");
    canvas.ariaLabel = "map of z0 and z1: arrow keys move, with shift further, Home to the middle";
    const readout = make("output", "explorer-z");
    const hint = make("span", "explorer-hint");
    const element = make("div", "explorer-plane", {},
      canvas, make("p", "explorer-readout", {}, readout, hint), makeLegend(data.map));
    const points = decodeNumbers(data.map.z);
    const [across, upward] = [reach(data, 0), reach(data, 1)];
    let box = { left: 40, top: 8, side: 1 }, ground = null, z = data.mean, held = false;

    const toPlace = (point) => [
      box.left + (box.side * (point[0] - across[0])) / (across[1] - across[0]),
      box.top + box.side * (1 - (point[1] - upward[0]) / (upward[1] - upward[0])),
    ];
    function follow(event) {
      const edge = canvas.getBoundingClientRect();
      const right = clamp((event.clientX - edge.left - box.left) / box.side, 0, 1);
      const up = 1 - clamp((event.clientY - edge.top - box.top) / box.side, 0, 1);
      moveTo([
        across[0] + right * (across[1] - across[0]), upward[0] + up * (upward[1] - upward[0]),
      ]);
    }

    function hold(value) {
      held = value;
      hint.textContent = held
        ? "held; click again to move on"
        : "move over the map, click to hold a place";
    }

    function step(event) {
      const directions = {
        ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
      };
      if (event.key !== "Home" && !(event.key in directions)) return;
      event.preventDefault();
      const [right, up] = directions[event.key] ?? [0, 0];
      const far = (event.shiftKey ? 5 : 1) / MAP_STEPS;
      const z = current(); // keys come faster than frames
      const moved = (value, [low, high], by) =>
        clamp(value + by * far * (high - low), low, high);
      moveTo(event.key === "Home" ? data.mean
        : [moved(z[0], across, right), moved(z[1], upward, up)]);
    }

    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons || (event.pointerType === "mouse" && !held)) follow(event);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (event.pointerType === "mouse") hold(!held);
    });
    canvas.addEventListener("keydown", step);

    function resize() {
      const width = Math.min(element.clientWidth || 320, 440);
      box.side = width - box.left - 8;
      const height = box.top + box.side + 34;
      sharpContext(canvas, width, height);
      ground = document.createElement("canvas");
      paintGround(sharpContext(ground, width, height));
      show(z);
    }

    function paintGround(context) {
      const { left, top, side } = box;
      const ink = colour(section, "ink"), edge = colour(section, "edge");
      context.font = "12px system-ui, sans-serif";
      context.fillStyle = ink;
      context.strokeStyle = edge;
      context.lineWidth = 1;
      for (const [value, text] of ticks(across)) {
        const x = toPlace([value, 0])[0];
        line(context, [x, top], [x, top + side], value === 0 ? 0.9 : 0.35);
        write(context, text, x, top + side + 15, "center");
      }
      for (const [value, text] of ticks(upward)) {
        const y = toPlace([0, value])[1];
        line(context, [left, y], [left + side, y], value === 0 ? 0.9 : 0.35);
        write(context, text, left - 6, y + 4, "right");
      }
      context.font = "italic 14px system-ui, sans-serif";
      write(context, "z₀", left + side / 2, top + side + 31, "center");
      write(context, "z₁", 10, top + side / 2 + 5, "center");
      context.strokeRect(left, top, side, side);
      context.save();
      context.beginPath();
      context.rect(left, top, side, side);
      context.clip();
      paintPoints(context);
      context.restore();
    }

    function paintPoints(context) {
      const radius = clamp(60 / Math.sqrt(points.length / 2), 1.4, 3);
      context.globalAlpha = 0.75;
      for (let i = 0; i < points.length / 2; i++) {
        const group = data.map.classes?.[data.map.index[i]];
        context.fillStyle = group ? group.colour : colour(section, "accent");
        context.beginPath();
        context.arc(...toPlace([points[2 * i], points[2 * i + 1]]), radius, 0, 2 * Math.PI);
        context.fill();
      }
    }

    function show(point) {
      z = point;
      readout.textContent = `z = (${written(z[0], data)}, ${written(z[1], data)})`;
      if (!ground) return;
      const context = canvas.getContext("2d");
      context.save();
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.drawImage(ground, 0, 0);
      context.restore();
      paintMarker(context);
    }

    function paintMarker(context) {
      const { left, top, side } = box, [x, y] = toPlace(z);
      const centre = [clamp(x, left, left + side), clamp(y, top, top + side)];
      for (const [name, width] of [["paper", 5], ["ink", 2]]) {
        context.strokeStyle = colour(section, name);
        context.lineWidth = width;
        context.beginPath();
        context.arc(...centre, 7, 0, 2 * Math.PI);
        context.stroke();
      }
    }

    hold(false);
    return { element, show, resize };
  }

  function line(context, from, to, alpha) {
    context.globalAlpha = alpha;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    context.globalAlpha = 1;
  }

  function write(context, text, x, y, align) {
    context.textAlign = align;
    context.fillText(text, x, y);
  }

  // Some six round numbers between low and high, and how they are written.
  function ticks([low, high]) {
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 5, 10].find((each) => each * power >= 0.8 * rough) * power;
    const first = Math.ceil(low / size - 1e-9), last = Math.floor(high / size + 1e-9);
    const decimals = Math.max(0, -Math.floor(Math.log10(size) + 1e-9));
    return Array.from({ length: last - first + 1 }, (_, i) => {
      const value = (first + i) * size;
      return [value, signed(value.toFixed(decimals))];
    });
  }

  function makeLegend({ classes }) {
    const items = (classes ?? []).map(({ name, colour }) => {
      const dot = make("span", "explorer-dot");
      dot.style.background = colour;
      return make("li", "", {}, dot, name);
    });
    const title = classes ? [make("li", "", {}, "label")] : [];
    return make("ul", "explorer-legend", {}, ...title, ...items);
  }

  function makeData(data, x, section, choose) {
    const shape = imageShape(data.event_shape), { labels } = data.data;
    const buttons = x.map((numbers, i) => {
      const canvas = make("canvas");
      const button = make("button", "explorer-datum", { type: "button" }, canvas);
      button.ariaLabel = `datum ${i + 1}${labels ? `, label ${labels[i]}` : ""}`;
      if (labels) button.append(make("span", "", {}, labels[i]));
      button.addEventListener("click", () => choose(i));
      return button;
    });
    const limit = data.program ? "" : ", as near as the grid reaches";
    const title = make("span", "explorer-title", {}, `Go to E[z|x] of a datum${limit}`);
    const element = make("div", "explorer-data", {}, title, ...buttons);
    const show = (datum) => buttons.forEach((button, i) => { button.ariaPressed = i === datum; });

    function resize() {
      buttons.forEach((button, i) => {
        const canvas = button.firstChild;
        const stroke = colour(section, "ink");
        if (!shape) return paintLines(canvas, [{ numbers: x[i], stroke }], data.display, 72, 44);
        paintImage(canvas, x[i], shape, data.display);
        const scale = Math.max(1, Math.round(THUMBNAIL / Math.max(shape[1], shape[2])));
        canvas.style.width = `${scale * shape[2]}px`;
      });
    }
    return { element, show, resize };
  }

  function makeButton(text, title, action) {
    const button = make("button", "explorer-button", { type: "button", title }, text);
    button.addEventListener("click", action);
    return button;
  }

  function notes(data) {
    const moved = dimsToMove(data), still = data.latent_dim - moved.length;
    const said = [data.program
      ? "The decoder itself runs in this page."
      : `Pictures are interpolated between ${data.grid.shape.join(" × ")} decoded ones, each of `
        + "256 levels."];
    if (still) {
      const rest = still === 1 ? "the other one stays" : `the other ${still} stay`;
      said.push(`${listed(moved)} move, the most active; ${rest} at the prior's mean.`);
    }
    const from = data.quantiles ? "scales from the prior's median" : "standard deviations of p(z)";
    const why = data.span > 3 ? ", as far as 99 % of the data lie" : "";
    said.push(`Latents go to ±${data.span} ${from}${why}.`);
    if (data.quantiles) said.push("p(z) has no finite variance: a scale is half its central 68 %.");
    if (!data.map) {
      said.push("Activity is the variance over data of E[z|x]; near 0 a latent is unused.");
      const honest = "p(z) is no such normal, so that a random z here is not a draw of it.";
      if (!data.normal) said.push(honest);
    }
    const [low, high] = data.display.map(brief);
    said.push(data.event_shape.length > 1
      ? `Black is ${low}, white ${high}.` : `Frames span ${low} to ${high}.`);
    return said.join(" ");
  }

  function rowsOf({ shape: [count, size] }, numbers) {
    return Array.from({ length: count }, (_, i) => numbers.slice(i * size, (i + 1) * size));
  }

  function startExplorer(section) {
    const data = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
    const decode = makeDecoder(data), x = rowsOf(data.data.x, decodeNumbers(data.data.x));
    let next = { z: reachable(data, data.mean), datum: null }, frame = 0;

    function moveTo(z, datum = next.datum) {
      next = { z: reachable(data, z), datum };
      frame ||= requestAnimationFrame(draw);
    }

    function draw() {
      frame = 0;
      view.show(decode(next.z), next.datum);
      control.show(next.z);
      examples.show(next.datum);
      section.dataset.z = JSON.stringify(next.z);
    }

    const view = makeView(data, x, section);
    const control = data.map
      ? makeMap(data, section, () => next.z, moveTo)
      : makeSliders(data, (dim, value) => moveTo(next.z.with(dim, value)));
    const examples = makeData(data, x, section, (i) => moveTo(data.data.z[i], i));
    const buttons = make("div", "explorer-buttons", {},
      makeButton("prior mean", "z at the mean of p(z)", () => moveTo(data.mean, null)));
    if (!data.map) {
      const name = data.normal ? "random z ~ p(z)" : "random z ~ N(mean, sd)";
      const normal = () => data.mean.map((mean, d) => mean + data.scale[d] * randomNormal());
      const title = "a normal of the mean and standard deviation of p(z)";
      buttons.append(makeButton(name, title, () => moveTo(normal(), null)));
    }
    section.append(
      make("div", "explorer-body", {},
        make("div", "explorer-left", {}, view.element, examples.element),
        make("div", "explorer-right", {}, control.element, buttons)),
      make("p", "explorer-note", {}, notes(data)));

    function layOut() {
      for (const part of [view, control, examples]) part.resize();
    }
    draw();
    layOut();
    new ResizeObserver(layOut).observe(section);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      layOut();
      draw();
    });
  }

  const startAll = () => document.querySelectorAll("section.explorer").forEach(startExplorer);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
