// What scrolls sideways on a narrow screen can be reached and scrolled with the keyboard.
const reach = () => {
  for (const region of document.querySelectorAll(".md-typeset__scrollwrap, pre > code")) region.tabIndex = 0;
};
new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
reach();
