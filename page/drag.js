// Points of a drawing, <circle data-point="i" tabindex="0">, moved by the pointer or the arrow keys: `place(i)`
// says where one is, `move(i, x, y)` puts it there, in the drawing's own units.
const drag = (element, place, move) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const movable = ({ target }) => target.tagName === "circle" && target.hasAttribute("tabindex");

  element.addEventListener("keydown", (event) => {
    if (!movable(event) || !(event.key in moves)) return;
    event.preventDefault();
    const point = Number(event.target.dataset.point);
    const [x, y] = place(point);
    const step = event.target.ownerSVGElement.viewBox.baseVal.width / (event.shiftKey ? 20 : 100);
    const [dx, dy] = moves[event.key];
    move(point, x + dx * step, y + dy * step);
  });
  element.addEventListener("pointerdown", (event) => {
    if (!movable(event)) return;
    event.preventDefault();
    event.target.focus();
    event.target.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!movable(event) || !event.target.hasPointerCapture(event.pointerId)) return;
    const at = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = at.matrixTransform(event.target.ownerSVGElement.getScreenCTM().inverse());
    move(Number(event.target.dataset.point), x, y);
  });
};
