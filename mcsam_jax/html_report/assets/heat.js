// Draws the attention map of a word over the images of its study.

const CANVAS_SIDE = 64;                                   // pixels; the browser scales the canvas up
const KERNEL_SIGMA = 0.6;                                 // of the Gaussian that smooths a map, in patches

// Returns the attention maps of a study, uint8 [words, views, patches]; null if it has none or they aren't loaded yet.
function readMaps(study, numWords, numViews) {
  const blob = document.getElementById(`maps-${study}`);
  if (!blob || !numWords || !numViews) return null;
  const bytes = decodeBytes(blob.textContent);
  const patches = bytes.length / (numWords * numViews), grid = Math.round(Math.sqrt(patches));
  if (grid * grid !== patches) return null;
  const offset = (word, view) => (word * numViews + view) * patches;
  return {grid, get: (word, view) => bytes.subarray(offset(word, view), offset(word, view + 1))};
}

// Draws a word's map over each view, most opaque at the maximum of all views. Without maps, clears the canvases.
function drawHeatMaps(canvases, maps, word, color) {
  const smoothed = canvases.map((_, view) => maps ? smoothMap(maps.get(word, view), maps.grid) : null);
  const largest = Math.max(1e-6, ...smoothed.map((map) => map ? map.reduce((a, b) => Math.max(a, b), 0) : 0));
  canvases.forEach((canvas, view) => {
    canvas.width = canvas.height = CANVAS_SIDE;
    if (!smoothed[view]) return;
    const context = canvas.getContext("2d"), pixels = context.createImageData(CANVAS_SIDE, CANVAS_SIDE);
    smoothed[view].forEach((value, i) => {
      pixels.data.set(color, 4 * i);
      pixels.data[4 * i + 3] = 175 * (value / largest) ** 2;
    });
    context.putImageData(pixels, 0, 0);
  });
}

// Upsamples a map [grid, grid] to [CANVAS_SIDE, CANVAS_SIDE] with a Gaussian, along rows and then along columns.
function smoothMap(map, grid) {
  const weights = getKernel(grid), rows = new Float32Array(grid * CANVAS_SIDE);
  const result = new Float32Array(CANVAS_SIDE * CANVAS_SIDE);
  for (let y = 0; y < grid; y++)
    for (let x = 0; x < CANVAS_SIDE; x++)
      for (let i = 0; i < grid; i++) rows[y * CANVAS_SIDE + x] += weights[x * grid + i] * map[y * grid + i];
  for (let y = 0; y < CANVAS_SIDE; y++)
    for (let i = 0; i < grid; i++) {
      const weight = weights[y * grid + i];
      for (let x = 0; x < CANVAS_SIDE; x++) result[y * CANVAS_SIDE + x] += weight * rows[i * CANVAS_SIDE + x];
    }
  return result;
}

const kernels = new Map();

// Returns the weight of each patch for each pixel along one axis, [CANVAS_SIDE, grid].
function getKernel(grid) {
  if (kernels.has(grid)) return kernels.get(grid);
  const weights = new Float32Array(CANVAS_SIDE * grid);
  for (let pixel = 0; pixel < CANVAS_SIDE; pixel++) {
    const center = (pixel + 0.5) * grid / CANVAS_SIDE - 0.5;
    let sum = 0;
    for (let i = 0; i < grid; i++) {
      weights[pixel * grid + i] = Math.exp(-(((i - center) / KERNEL_SIGMA) ** 2) / 2);
      sum += weights[pixel * grid + i];
    }
    for (let i = 0; i < grid; i++) weights[pixel * grid + i] /= sum;
  }
  kernels.set(grid, weights);
  return weights;
}

// Describes where the maps of a word are largest. Left and right are those of the image, not of the patient.
function describeMaximum(maps, word, views) {
  let best = -1, description = "";
  views.forEach((view, number) => {
    maps.get(word, number).forEach((value, patch) => {
      if (value <= best) return;
      best = value;
      const row = (Math.floor(patch / maps.grid) + 0.5) / maps.grid, column = (patch % maps.grid + 0.5) / maps.grid;
      const vertical = row < 0.35 ? "upper" : row < 0.65 ? "middle" : "lower";
      const horizontal = column < 0.4 ? "left" : column > 0.6 ? "right" : "center";
      description = `${view} view, ${vertical} ${horizontal} of the image`;
    });
  });
  return description;
}
