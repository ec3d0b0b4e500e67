// The points of an evaluation's page: drag turns them, buttons colour them, a click is answered.
//
// `npm ci && npm run build` in this folder writes bundle.js, three.js included; the page embeds the
// bundle and the data that f3rm/evaluation/cloud.py writes.
import {
  BufferAttribute,
  BufferGeometry,
  Color,
  ColorManagement,
  LineBasicMaterial,
  LineSegments,
  LinearSRGBColorSpace,
  Matrix4,
  PerspectiveCamera,
  Points,
  PointsMaterial,
  Scene,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

const FIELD_OF_VIEW = 50;
const CLICK_PIXELS = 8; // how far from a point a click may be, and how far a click may move
const ALIKE = 0.5; // the similarity from which a point is counted as alike
const DIMMED = 0.45; // how bright what matches nothing is

const data = JSON.parse(document.getElementById("cloud-data").textContent);
const place = document.getElementById("cloud");
const buttons = document.getElementById("cloud-buttons");
const answer = document.getElementById("cloud-answer");
const scale = document.getElementById("cloud-scale");

const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const photographs = bytes(data.colours);
const features = bytes(data.features);
const scores = data.scores.map(bytes); // one array per prompt, 255 for a score of 1
const owners = bytes(data.owners); // the instance of each point, from 1; 0 for none
const vectors = new Int8Array(bytes(data.vectors).buffer);
const channels = vectors.length / data.count;

function positionsOf() {
  const steps = new Uint16Array(bytes(data.positions).buffer);
  return Float32Array.from(
    steps, (step, index) => data.low[index % 3] + (step / 65535) * data.span[index % 3]);
}

// Colours: each function gives the red, green and blue of a point, in [0, 255].

const grey = (index) =>
  DIMMED * (photographs[3 * index] + photographs[3 * index + 1] + photographs[3 * index + 2]) / 3;

const stored = (colours) => (index) => colours.subarray(3 * index, 3 * index + 3);

function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (data.heat.length - 1);
  const low = Math.min(Math.floor(at), data.heat.length - 2);
  return data.heat[low].map((first, channel) =>
    first + (at - low) * (data.heat[low + 1][channel] - first));
}

const heated = (share) => (index) =>
  heat(share(index)).map((colour) => 0.25 * grey(index) + 0.75 * colour);

function answered(index) {
  if (!owners[index]) return [grey(index), grey(index), grey(index)];
  const colour = data.prompts[data.instances[owners[index] - 1].prompt].colour;
  return colour.map((part) => 0.7 * part + 0.3 * grey(index) / DIMMED);
}

function similarities(chosen) {
  const one = vectors.subarray(chosen * channels, (chosen + 1) * channels);
  const dot = (index) => {
    let sum = 0;
    for (let each = 0; each < channels; each++) sum += one[each] * vectors[index * channels + each];
    return sum;
  };
  const length = (index) => {
    let sum = 0;
    for (let each = 0; each < channels; each++) sum += vectors[index * channels + each] ** 2;
    return Math.sqrt(sum) || 1;
  };
  const own = length(chosen);
  return Float32Array.from({ length: data.count }, (_, index) => dot(index) / own / length(index));
}

// What is drawn.

ColorManagement.enabled = false; // colours are drawn as they are: nothing is lit
const scene = new Scene();
const camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, data.spacing, data.spacing * 1e4);
const target = new Vector3(...data.target);
camera.up.set(...data.up);
const positions = positionsOf();
const tints = new Uint8Array(3 * data.count);

function pointsOf(places, material) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(places, 3));
  return new Points(geometry, new PointsMaterial(material));
}

const size = 1.5 * data.spacing / Math.tan(FIELD_OF_VIEW * Math.PI / 360);
const cloud = pointsOf(positions, { size, vertexColors: true });
cloud.geometry.setAttribute("color", new BufferAttribute(tints, 3, true));
const marker = pointsOf(
  new Float32Array(3), { size: 12, sizeAttenuation: false, color: "white", depthTest: false });
marker.visible = false;
marker.renderOrder = 1;
const boxes = data.instances.map((instance) => {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(Float32Array.from(instance.edges), 3));
  const color = new Color(...data.prompts[instance.prompt].colour.map((part) => part / 255));
  return new LineSegments(geometry, new LineBasicMaterial({ color }));
});
scene.add(cloud, marker, ...boxes);

function paint(colourOf) {
  for (let index = 0; index < data.count; index++) tints.set(colourOf(index), 3 * index);
  cloud.geometry.attributes.color.needsUpdate = true;
}

function start(renderer) {
  const canvas = renderer.domElement;
  let waiting = false;
  const draw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      renderer.render(scene, camera);
    });
  };

  function fit() {
    renderer.setSize(place.clientWidth, place.clientHeight);
    camera.aspect = place.clientWidth / place.clientHeight;
    camera.updateProjectionMatrix();
    draw();
  }

  // On a narrow screen farther away, so that it shows as much.
  const away = Math.max(1, 1.2 * place.clientHeight / place.clientWidth);
  camera.position.set(...data.eye).sub(target).multiplyScalar(away).add(target);
  const controls = new OrbitControls(camera, canvas);
  controls.target.copy(target);
  controls.addEventListener("change", draw);
  controls.update();
  addButtons(draw);
  listenForClicks(canvas, draw);
  place.replaceChildren(canvas);
  new ResizeObserver(fit).observe(place);
}

// Buttons, answers and clicks.

function addButtons(draw) {
  const all = [];
  const add = (text, show, colour) => {
    const button = document.createElement("button");
    button.textContent = text;
    if (colour) button.style.borderLeft = `.6rem solid rgb(${colour})`;
    button.addEventListener("click", () => {
      for (const each of all) each.setAttribute("aria-pressed", each === button);
      show();
      draw();
    });
    buttons.append(button);
    all.push(button);
    return button;
  };
  const first = add("photographs", () => shown(stored(photographs), "", "Colours of the photographs."));
  add("features", () => shown(stored(features), "", "Features as colours (PCA): alike is alike."));
  data.prompts.forEach((prompt, index) =>
    add(prompt.text, () => shown(
      heated((point) => scores[index][point] / 255), "score", prompt.answer), prompt.colour));
  if (data.instances.length) {
    const every = add("all answers", () => shown(
      answered, "", "Each point in the colour of the instance that it is part of."));
    every.click();
  } else {
    first.click();
  }
}

function shown(colourOf, kind, words) {
  marker.visible = false;
  paint(colourOf);
  scale.hidden = !kind;
  scale.querySelector("b").textContent = kind;
  answer.textContent = words;
}

function listenForClicks(canvas, draw) {
  let pressed = null;
  canvas.addEventListener("pointerdown", (event) => {
    pressed = event.isPrimary ? [event.offsetX, event.offsetY] : null;
  });
  canvas.addEventListener("pointerup", (event) => {
    const from = pressed;
    pressed = null;
    if (!from || Math.hypot(event.offsetX - from[0], event.offsetY - from[1]) > CLICK_PIXELS) return;
    const point = pointAt(event.offsetX, event.offsetY, canvas);
    if (point < 0) answer.textContent = "There is no point where you clicked.";
    else tell(point);
    draw();
  });
}

/** Returns the point nearest to the camera within a few pixels of a place; -1 for none. */
function pointAt(x, y, canvas) {
  const matrix = new Matrix4().multiplyMatrices(camera.projectionMatrix, camera.matrixWorldInverse);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const place = new Vector3();
  let best = -1;
  let nearest = Infinity;
  for (let index = 0; index < data.count; index++) {
    place.fromArray(positions, 3 * index).applyMatrix4(matrix);
    const right = (place.x + 1) / 2 * width - x;
    const down = (1 - place.y) / 2 * height - y;
    if (Math.abs(place.z) < 1 && place.z < nearest && Math.hypot(right, down) < CLICK_PIXELS) {
      best = index;
      nearest = place.z;
    }
  }
  return best;
}

/** Says what is at a point, and shows what is like it. */
function tell(point) {
  const like = similarities(point);
  for (const button of buttons.children) button.setAttribute("aria-pressed", false);
  shown(heated((index) => like[index]), "similarity", "");
  marker.geometry.attributes.position.array.set(positions.subarray(3 * point, 3 * point + 3));
  marker.geometry.attributes.position.needsUpdate = true;
  marker.visible = true;
  const count = like.reduce((sum, value) => sum + (value > ALIKE), 0);
  const others = `${(100 * count / data.count).toFixed(1)} % of the points are like it.`;
  answer.textContent = `${described(point)} ${others}`;
}

function described(point) {
  if (owners[point]) {
    const instance = data.instances[owners[point] - 1];
    return `This is ${instance.label}; score ${(scores[instance.prompt][point] / 255).toFixed(2)}.`;
  }
  if (!data.prompts.length) return "";
  const best = data.prompts.reduce((first, _, index) =>
    scores[index][point] > scores[first][point] ? index : first, 0);
  const score = scores[best][point] / 255;
  const nearest = `; the nearest is ${data.prompts[best].text} with score ${score.toFixed(2)}`;
  return `None of the prompts is found here${score < 0.1 ? "" : nearest}.`;
}

try {
  const renderer = new WebGLRenderer({ antialias: true });
  renderer.outputColorSpace = LinearSRGBColorSpace;
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  renderer.setClearColor(0x16191d);
  start(renderer);
} catch (error) {
  place.textContent = `This browser cannot draw in 3D: ${error.message}. See the pictures below.`;
}
