"use strict";

/*
 * The decoder of a model, z ↦ E[x|z], as numbers alone: no page is needed.
 *
 *   const decode = makeDecoder(data);   // data.program, or else data.grid
 *   const image = decode([0.3, -1.2]);  // Float64Array, the numbers of x in row
 *
 * A program is a list of values: value 0 is z, then come constants, then nodes, each an
 * operation on values before it. A grid holds decoded images to interpolate between.
 */

// An array {shape, dtype, data}, its numbers in base64, little-endian, as a typed array.
function decodeNumbers(record) {
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const value = new Uint8Array(128);
  for (let i = 0; i < 64; i++) value[digits.charCodeAt(i)] = i;
  const text = record.data.replace(/=+$/, "");
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4));
  for (let i = 0, at = 0; i < text.length; i += 4) {
    let bits = 0;
    for (let k = 0; k < 4; k++) bits = (bits << 6) | (value[text.charCodeAt(i + k)] || 0);
    for (let k = 16; k >= 0 && at < bytes.length; k -= 8) bytes[at++] = (bits >> k) & 255;
  }
  if (record.dtype === "float32") return new Float32Array(bytes.buffer);
  if (record.dtype === "bool" || record.dtype === "uint8") return bytes;
  return new Float64Array(bytes.buffer);
}

const makeDecoder = (() => {
  const UNARY = {
    abs: Math.abs, neg: (x) => -x, sign: Math.sign, floor: Math.floor, ceil: Math.ceil,
    exp: Math.exp, expm1: Math.expm1, log: Math.log, log1p: Math.log1p, log2: Math.log2,
    log10: Math.log10, sqrt: Math.sqrt, reciprocal: (x) => 1 / x, sin: Math.sin, cos: Math.cos,
    tan: Math.tan, asin: Math.asin, acos: Math.acos, atan: Math.atan, sinh: Math.sinh,
    cosh: Math.cosh, asinh: Math.asinh, acosh: Math.acosh, atanh: Math.atanh, tanh: Math.tanh,
    sigmoid: (x) => 1 / (1 + Math.exp(-x)), erf, logical_not: (x) => x ? 0 : 1,
  };
  const BINARY = {
    add: (a, b) => a + b, sub: (a, b) => a - b, mul: (a, b) => a * b, div: (a, b) => a / b,
    pow: Math.pow, maximum: Math.max, minimum: Math.min, atan2: Math.atan2,
    eq: (a, b) => a === b, ne: (a, b) => a !== b, lt: (a, b) => a < b, le: (a, b) => a <= b,
    gt: (a, b) => a > b, ge: (a, b) => a >= b,
    logical_and: (a, b) => a && b ? 1 : 0, logical_or: (a, b) => a || b ? 1 : 0,
  };
  const REDUCTIONS = {
    sum: [0, (a, b) => a + b], prod: [1, (a, b) => a * b],
    amax: [-Infinity, Math.max], amin: [Infinity, Math.min],
  };

  // erf x = 2/√π exp(−x²) Σ_n 2ⁿ x²ⁿ⁺¹/(2n+1)!!, all terms of one sign.
  function erf(x) {
    if (!(Math.abs(x) < 6)) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }

  const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

  // Of numbers in row, the last dimension running fastest.
  const stridesOf = (shape) => shape.map((_, d) => product(shape.slice(d + 1)));

  // The strides at which numbers of `shape` are read to fill `target`.
  function broadcast(shape, target) {
    const own = stridesOf(shape).map((stride, d) => shape[d] === 1 ? 0 : stride);
    return [...new Array(target.length - shape.length).fill(0), ...own];
  }

  // offset + Σ_d i_d strides_d for every index i of `shape`, in row.
  function indices(shape, strides, offset = 0) {
    const out = new Int32Array(product(shape));
    const index = new Array(shape.length).fill(0);
    for (let n = 0, at = offset; n < out.length; n++) {
      out[n] = at;
      for (let d = shape.length - 1; d >= 0; d--) {
        at += strides[d];
        if (++index[d] < shape[d]) break;
        at -= strides[d] * shape[d];
        index[d] = 0;
      }
    }
    return out;
  }

  const sameShape = (a, b) => a.length === b.length && a.every((size, d) => size === b[d]);

  // Where output numbers find theirs in an input: null for the same place.
  const places = (input, shape) =>
    sameShape(input.shape, shape) ? null : indices(shape, broadcast(input.shape, shape));

  function newNumbers(dtype, size) {
    if (dtype === "float32") return new Float32Array(size);
    return dtype === "bool" ? new Uint8Array(size) : new Float64Array(size);
  }

  function unary(node, [a], out) {
    const f = UNARY[node.op];
    return () => { for (let i = 0; i < out.length; i++) out[i] = f(a.numbers[i]); };
  }

  function binary(node, [a, b], out) {
    const f = BINARY[node.op], x = a.numbers, y = b.numbers;
    const p = places(a, node.shape), q = places(b, node.shape);
    return () => {
      for (let i = 0; i < out.length; i++) out[i] = f(x[p ? p[i] : i], y[q ? q[i] : i]);
    };
  }

  function where(node, inputs, out) {
    const [c, a, b] = inputs.map((input) => input.numbers);
    const [r, p, q] = inputs.map((input) => places(input, node.shape) ?? indices(
      node.shape, stridesOf(node.shape)));
    return () => { for (let i = 0; i < out.length; i++) out[i] = c[r[i]] ? a[p[i]] : b[q[i]]; };
  }

  // Σ_k a[…, i, k] b[…, k, j], summed in double precision.
  function matmul(node, [a, b], out) {
    const [rows, inner] = a.shape.slice(-2), columns = b.shape.at(-1);
    const x = a.numbers, y = b.numbers, sum = new Float64Array(columns);
    return () => {
      for (let row = 0; row < out.length / columns; row++) {
        const matrix = Math.floor(row / rows) * inner * columns;
        sum.fill(0);
        for (let k = 0; k < inner; k++) {
          const factor = x[row * inner + k], start = matrix + k * columns;
          for (let j = 0; j < columns; j++) sum[j] += factor * y[start + j];
        }
        out.set(sum, row * columns);
      }
    };
  }

  // Over the dimensions of the input that are 1 in the output, in double precision.
  function reduce(node, [a], out) {
    const [start, f] = REDUCTIONS[node.op];
    const at = indices(a.shape, broadcast(node.shape, a.shape));
    const x = a.numbers, total = new Float64Array(out.length);
    return () => {
      total.fill(start);
      for (let i = 0; i < x.length; i++) total[at[i]] = f(total[at[i]], x[i]);
      out.set(total);
    };
  }

  // out[i, j, …] = in[offset + i strides₀ + j strides₁ + …]
  function gather(node, [a], out) {
    const x = a.numbers, at = indices(node.shape, node.strides, node.offset);
    return () => { for (let i = 0; i < out.length; i++) out[i] = x[at[i]]; };
  }

  function concat(node, inputs, out) {
    const strides = stridesOf(node.shape);
    let offset = 0;
    const parts = inputs.map(({ shape, numbers }) => {
      const at = indices(shape, strides, offset);
      offset += shape[node.dim] * strides[node.dim];
      return [numbers, at];
    });
    return () => {
      for (const [x, at] of parts) for (let i = 0; i < x.length; i++) out[at[i]] = x[i];
    };
  }

  function cast(node, [a], out) {
    const change = { bool: (x) => x ? 1 : 0, int64: Math.trunc }[node.dtype] ?? ((x) => x);
    return () => { for (let i = 0; i < out.length; i++) out[i] = change(a.numbers[i]); };
  }

  const view = (node, [a], out) => () => out.set(a.numbers);

  const OTHERS = { where, matmul, gather, concat, cast, view };

  function makerOf(op) {
    if (op in UNARY) return unary;
    if (op in BINARY) return binary;
    if (op in REDUCTIONS) return reduce;
    if (op in OTHERS) return OTHERS[op];
    throw new Error(`unknown operation ${op}`);
  }

  function programDecoder(program) {
    const z = { shape: [1, program.latent_dim], numbers: new Float32Array(program.latent_dim) };
    const values = [z];
    for (const constant of program.constants) {
      values.push({ shape: constant.shape, numbers: decodeNumbers(constant) });
    }
    const steps = program.nodes.map((node) => {
      const numbers = newNumbers(node.dtype, product(node.shape));
      const step = makerOf(node.op)(node, node.in.map((i) => values[i]), numbers);
      values.push({ shape: node.shape, numbers });
      return step;
    });
    return (point) => {
      z.numbers.set(point);
      for (const step of steps) step();
      return Float64Array.from(values[program.output].numbers);
    };
  }

  // Multilinear between the nodes around z; z outside the grid counts as its nearest edge.
  function gridDecoder(grid) {
    const levels = decodeNumbers(grid.levels), [count, size] = [product(grid.shape), grid.size];
    const strides = stridesOf(grid.shape), step = (grid.max - grid.min) / 255;
    if (levels.length !== count * size) throw new Error("a grid of another size");
    const place = (z) => grid.dims.map((dim, axis) => {
      const last = grid.shape[axis] - 1;
      const at = ((z[dim] - grid.low[axis]) / (grid.high[axis] - grid.low[axis])) * last;
      const inside = Math.min(Math.max(at, 0), last);
      const node = Math.min(Math.floor(inside), last - 1);
      return [node, inside - node];
    });
    return (z) => {
      const around = place(z), out = new Float64Array(size);
      for (let corner = 0; corner < 1 << around.length; corner++) {
        let weight = step, node = 0;
        around.forEach(([low, part], axis) => {
          const up = (corner >> axis) & 1;
          weight *= up ? part : 1 - part;
          node += (low + up) * strides[axis];
        });
        if (weight === 0) continue;
        for (let i = 0; i < size; i++) out[i] += weight * levels[node * size + i];
      }
      for (let i = 0; i < size; i++) out[i] += grid.min;
      return out;
    };
  }

  return (data) => data.program ? programDecoder(data.program) : gridDecoder(data.grid);
})();
