// The heat map of a word: its attention over the patches, drawn over the images of its study.

const FINE = 64;                                          // pixels of a map's side; the browser smooths the rest
const SPREAD = 0.6;                                       // of a patch's weight about its centre, in patches

// The maps of a study, uint8 [words, views, patches]; null while the page is still being read, or without any.
function readMaps(study, numWords, numViews) {
  const lump = document.getElementById(`m${study}`);
  if (!lump || !numWords || !numViews) return null;
  const bytes = decodeBytes(lump.textContent);
  const patches = bytes.length / (numWords * numViews), grid = Math.round(Math.sqrt(patches));
  if (grid * grid !== patches) return null;
  const begin = (word, view) => (word * numViews + view) * patches;
  return {grid, of: (word, view) => bytes.subarray(begin(word, view), begin(word, view + 1))};
}

// Draws a word's map over each view, the strongest place of all views in full colour; without maps it clears.
function drawHeat(canvases, maps, word, colour) {
  const fine = canvases.map((_, view) => maps ? smooth(maps.of(word, view), maps.grid) : null);
  const largest = Math.max(1e-6, ...fine.map((map) => map ? map.reduce((a, b) => Math.max(a, b), 0) : 0));
  canvases.forEach((canvas, view) => {
    canvas.width = canvas.height = FINE;
    if (!fine[view]) return;
    const context = canvas.getContext("2d"), picture = context.createImageData(FINE, FINE);
    fine[view].forEach((value, at) => {
      picture.data.set(colour, 4 * at);
      picture.data[4 * at + 3] = 175 * (value / largest) ** 2;
    });
    context.putImageData(picture, 0, 0);
  });
}

// A map of grid x grid as FINE x FINE: every fine pixel is a mean of the patches about it, first along the rows.
function smooth(map, grid) {
  const weights = smoothing(grid), rows = new Float32Array(grid * FINE), fine = new Float32Array(FINE * FINE);
  for (let y = 0; y < grid; y++)
    for (let x = 0; x < FINE; x++)
      for (let i = 0; i < grid; i++) rows[y * FINE + x] += weights[x * grid + i] * map[y * grid + i];
  for (let y = 0; y < FINE; y++)
    for (let i = 0; i < grid; i++) {
      const weight = weights[y * grid + i];
      for (let x = 0; x < FINE; x++) fine[y * FINE + x] += weight * rows[i * FINE + x];
    }
  return fine;
}

const smoothings = new Map();

function smoothing(grid) {
  if (smoothings.has(grid)) return smoothings.get(grid);
  const weights = new Float32Array(FINE * grid);
  for (let pixel = 0; pixel < FINE; pixel++) {
    const place = (pixel + 0.5) * grid / FINE - 0.5;
    let sum = 0;
    for (let i = 0; i < grid; i++) sum += weights[pixel * grid + i] = Math.exp(-(((i - place) / SPREAD) ** 2) / 2);
    for (let i = 0; i < grid; i++) weights[pixel * grid + i] /= sum;
  }
  smoothings.set(grid, weights);
  return weights;
}

// Where a map is largest, in words: of the picture, not of the patient.
function placeOf(maps, word, views) {
  let best = -1, where = "";
  views.forEach((view, number) => {
    maps.of(word, number).forEach((value, patch) => {
      if (value <= best) return;
      best = value;
      const row = (Math.floor(patch / maps.grid) + 0.5) / maps.grid, column = (patch % maps.grid + 0.5) / maps.grid;
      const high = row < 0.35 ? "upper" : row < 0.65 ? "middle" : "lower";
      const side = column < 0.4 ? "left" : column > 0.6 ? "right" : "centre";
      where = `${view} view, ${high} ${side} of the picture`;
    });
  });
  return where;
}
