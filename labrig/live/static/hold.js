// A button that has to be held: by pointer, or by Space or Enter. A tool that only clicks gets a question instead.

/**
 * @param {HTMLButtonElement} button
 * @param {number} holdMs - how long
 * @param {{done: () => void, early: () => void, clicked: () => void}} on - held long enough, let go too early, or
 *   clicked by something that cannot hold, such as a screen reader
 */
export function holdToFire(button, holdMs, on) {
  let timer = null;
  button.style.setProperty("--hold", `${holdMs}ms`);

  function begin() {
    if (timer !== null || button.disabled) return;
    button.classList.add("held");
    timer = setTimeout(() => {
      end();
      on.done();
    }, holdMs);
  }

  function end() {
    clearTimeout(timer);
    timer = null;
    button.classList.remove("held");
  }

  function letGo() {
    if (timer === null) return;
    end();
    on.early();
  }

  let pointed = false;
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointed = true;
    button.setPointerCapture(event.pointerId);
    begin();
  });
  for (const name of ["pointerup", "pointercancel"]) button.addEventListener(name, letGo);
  button.addEventListener("pointermove", (event) => {
    // Captured, so that leaving has to be seen by where the pointer is.
    const box = button.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) letGo();
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  button.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    if (!event.repeat) begin();
  });
  button.addEventListener("keyup", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    letGo();
  });
  button.addEventListener("blur", letGo);
  button.addEventListener("click", (event) => {
    if (event.detail === 0 && !pointed) on.clicked();
    pointed = false;
  });
}
