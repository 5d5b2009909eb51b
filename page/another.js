// A drawn region (another.py): two corners of a box, shares of the picture, that the drag moves.
let moved = null; // the box as the visitor left it: an answer that was under way does not take it back
const corner = (i) => props.value.box.slice(2 * i, 2 * i + 2);
const place = (i) => {
  const { width, height } = element.querySelector("svg").viewBox.baseVal;
  return [corner(i)[0] * width, corner(i)[1] * height];
};

const follow = () => {
  const rect = element.querySelector("rect");
  const circles = element.querySelectorAll("circle");
  if (!rect || !circles.length) return;
  const [[left, top], [right, bottom]] = [place(0), place(1)];
  Object.entries({ x: left, y: top, width: right - left, height: bottom - top }).forEach(([name, value]) =>
    rect.setAttribute(name, value),
  );
  circles.forEach((circle, i) => {
    circle.setAttribute("cx", place(i)[0]);
    circle.setAttribute("cy", place(i)[1]);
  });
};

// A corner goes to x, y, no nearer to the other than a tenth of the picture.
const move = (i, x, y) => {
  const { width, height } = element.querySelector("svg").viewBox.baseVal;
  const other = corner(1 - i);
  const put = (value, axis) => {
    const [low, high] = i ? [other[axis] + 0.1, 1] : [0, other[axis] - 0.1];
    return Math.round(1000 * Math.min(Math.max(value, low), high)) / 1000;
  };
  const to = [put(x / width, 0), put(y / height, 1)];
  moved = i ? [...other, ...to] : [...to, ...other];
  props.value = { ...props.value, given: false, box: moved };
  follow();
};

drag(element, place, move);
watch("value", () => {
  const { box, given } = props.value;
  if (given) moved = null;
  if (moved && `${box}` !== `${moved}`) props.value = { ...props.value, box: moved };
  follow();
});
