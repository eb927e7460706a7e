/** The doors that files come in by: dropped anywhere on the page, chosen, or pasted. */

/**
 * @param {{zone: HTMLElement, choose: HTMLButtonElement, picker: HTMLInputElement}} elements
 * @param {(files: File[]) => void} open
 */
export function acceptFiles({ zone, choose, picker }, open) {
  let inside = 0; // elements that what is dragged has entered and not left
  const drag = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  const over = (/** @type {boolean} */ is) => zone.classList.toggle("over", is);

  window.addEventListener("dragenter", (event) => {
    if (!drag(event)) return;
    event.preventDefault();
    inside++;
    over(true);
  });
  window.addEventListener("dragover", (event) => {
    if (drag(event)) event.preventDefault();
  });
  window.addEventListener("dragleave", (event) => {
    if (drag(event) && --inside <= 0) over(false);
  });
  window.addEventListener("drop", (event) => {
    if (!drag(event)) return;
    event.preventDefault();
    inside = 0;
    over(false);
    give([...(event.dataTransfer?.files ?? [])]);
  });
  window.addEventListener("paste", (event) => give([...(event.clipboardData?.files ?? [])]));
  choose.addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => {
    give([...(picker.files ?? [])]);
    picker.value = ""; // the same file may be chosen again
  });

  function give(/** @type {File[]} */ files) {
    if (files.length) open(files);
  }
}
