// The head angle's widget (pose.py): a choice asks the server for its points; points are moved here.
const NOSE = 2;

// What is chosen, and the points where they are: the page's own radio buttons and moved points do not follow
// the HTML when it is the same as before.
const follow = () => {
  element.querySelectorAll("input").forEach((input) => {
    input.checked = input.value === props.value.choice;
  });
  const frame = element.querySelector("svg[role]");
  if (!frame || !props.value.points) return;
  const put = (name, point, x, y) => {
    const [left, top] = props.value.points[point];
    frame.querySelectorAll(name).forEach((shape) => {
      shape.setAttribute(x, left);
      shape.setAttribute(y, top);
    });
  };
  put("line", NOSE, "x2", "y2");
  props.value.points.forEach((_, i) => {
    put(`circle[data-point="${i}"]`, i, "cx", "cy");
    put(`line[data-point="${i}"]`, i, "x1", "y1");
  });
};

const choose = (choice) => {
  props.value = { ...props.value, choice };
  trigger("select");
};

// A point goes to x, y, and the choice is now the visitor's own.
const move = (index, x, y) => {
  const [width, height] = props.value.size;
  const round = (value, most) => Math.round(10 * Math.min(Math.max(value, 0), most)) / 10;
  const points = props.value.points.map((old, i) => (i === index ? [round(x, width), round(y, height)] : old));
  props.value = { ...props.value, choice: "own", points };
  follow();
};

element.addEventListener("change", (event) => choose(event.target.value));
element.addEventListener("click", (event) => {
  if (event.target.tagName === "BUTTON") choose(props.value.base);
});
drag(element, (i) => props.value.points[i], move);
watch("value", follow);
