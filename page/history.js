// The strip of pictures made in this browser. They are kept here (IndexedDB) and sent to no server.
// `element`, `props`, `watch` and `trigger` are Gradio's; what the page's buttons call is `window.pictures`.

const KEPT = 100; // pictures, the newest
const [pair, strip, facts] = element.querySelector(".past").children;
const [under, over, , slider, captions] = pair.children;
const urls = new Map(); // id -> the picture's address in this page
const seen = new Set(); // ids that came from the server
let pictures = []; // newest first: { id, time, blob, name, title, seed, settings, facts }
let selected = null;
let other = null; // what the selected one is compared with

const opened = new Promise((done, failed) => {
  const asked = indexedDB.open("infu", 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore("pictures", { keyPath: "id" });
  asked.onsuccess = () => done(asked.result);
  asked.onerror = failed;
}).catch(() => null); // a browser that may keep nothing: the strip then lasts as long as the page

async function stored(act) {
  const database = await opened;
  if (!database) return null;
  return new Promise((done) => {
    const asked = act(database.transaction("pictures", "readwrite").objectStore("pictures"));
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => done(null);
  });
}

function address(picture) {
  if (!urls.has(picture.id)) urls.set(picture.id, URL.createObjectURL(picture.blob));
  return urls.get(picture.id);
}

function release(gone) {
  for (const { id } of gone) {
    URL.revokeObjectURL(urls.get(id));
    urls.delete(id);
  }
}

async function add({ file, ...about }) {
  const blob = await (await fetch(file.url)).blob();
  const picture = { ...about, blob, name: file.orig_name, time: Date.now() };
  stored((store) => store.put(picture));
  pictures.unshift(picture);
  const old = pictures.splice(KEPT);
  for (const { id } of old) stored((store) => store.delete(id));
  release(old);
  select(picture);
}

function select(picture) {
  selected = picture;
  other = null;
  draw();
  trigger("select");
}

function choose(picture) {
  if (other === null) return select(picture);
  if (picture !== selected) other = picture;
  draw();
}

function drawOption(picture) {
  const option = document.createElement("button");
  option.setAttribute("role", "option");
  option.setAttribute("aria-selected", picture === selected || picture === other);
  option.tabIndex = picture === (other ?? selected) ? 0 : -1;
  option.onclick = () => choose(picture);
  const image = new Image();
  Object.assign(image, { loading: "lazy", alt: picture.title, title: picture.title, src: address(picture) });
  option.append(image);
  return option;
}

function draw() {
  const focused = strip.contains(document.activeElement);
  strip.replaceChildren(...pictures.map(drawOption));
  if (focused) strip.querySelector("[tabindex='0']")?.focus();
  facts.replaceChildren(
    ...(selected?.facts ?? []).flatMap(([name, value]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = name;
      dd.textContent = value;
      return [dt, dd];
    }),
  );
  pair.hidden = other === null;
  strip.ariaMultiSelectable = document.querySelector("#compare").ariaPressed = String(other !== null);
  if (other === null) return;
  document.querySelector("#picture").append(pair); // over the picture, for as long as two are compared
  under.src = address(selected);
  over.src = address(other);
  captions.replaceChildren(...[selected, other].map(({ title }) => Object.assign(document.createElement("span"), { textContent: title })));
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

strip.onkeydown = (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const next = pictures[pictures.indexOf(other ?? selected) + by];
  if (next === undefined) return;
  event.preventDefault();
  choose(next);
};
slider.oninput = () => pair.style.setProperty("--at", `${slider.value}%`);

window.pictures = {
  shown() {
    // The picture above the strip, its seed, and which buttons can be used, as values for Gradio.
    const enabled = (on) => ({ __type__: "update", interactive: on });
    const { name, seed, settings } = selected ?? {};
    const file = selected && { path: name, url: address(selected), orig_name: name, mime_type: "image/png", meta: { _type: "gradio.FileData" } };
    const usable = Boolean(settings);
    const picture = { __type__: "update", value: file, alt_text: selected?.title };
    return [picture, String(seed ?? ""), enabled(selected !== null), enabled(usable), enabled(usable), enabled(pictures.length > 1)];
  },
  back: () => selected && trigger("select"), // from a preview to the picture that was there before
  settings: () => [selected.settings],
  download: () => save(selected.blob, selected.name),
  async downloadAll() {
    const files = pictures.map(({ blob, name }, k) => ({ blob, name: `${String(pictures.length - k).padStart(3, "0")}-${name}` }));
    save(await zip(files.reverse()), "infiniteyou.zip");
  },
  compare() {
    const at = pictures.indexOf(selected);
    other = other === null ? (pictures[at + 1] ?? pictures[at - 1]) : null;
    draw();
  },
  clear(question) {
    if (!confirm(question)) return;
    stored((store) => store.clear()); // those of another tab too
    release(pictures);
    pictures = [];
    select(null);
  },
};

let waiting = stored((store) => store.getAll()).then((kept) => {
  pictures = (kept ?? []).sort((a, b) => b.time - a.time);
  if (pictures.length) select(pictures[0]);
});
watch("value", () => {
  for (const made of props.value ?? []) {
    if (seen.has(made.id)) continue;
    seen.add(made.id);
    waiting = waiting.then(() => add(made)).catch(console.error); // one that is lost does not hold up the next
  }
});
