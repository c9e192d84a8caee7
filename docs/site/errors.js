/* A box on the errors page that finds a pasted error among the messages, which are its small headings.
   What the program had filled in is no part of a heading, so pairs of neighbouring words are compared:
   most of the right message's are in what was pasted, wherever values stand between them. */
{
  const messages = [...document.querySelectorAll("h3.message")];
  const pairs = (text) => {
    const words = text.toLowerCase().match(/[\p{L}\d_]+|…/gu) || [];
    const found = words.slice(1).map((word, i) => `${words[i]} ${word}`);
    return words.length === 1 ? words : found.filter((pair) => !pair.includes("…"));
  };
  const wordsOf = (heading) => heading.textContent.replace("¶", "").trim();
  const find = (text) => {
    const given = new Set(pairs(text));
    const rated = messages.map((heading) => {
      const own = pairs(wordsOf(heading));
      const hits = own.filter((pair) => given.has(pair)).length;
      const isLike = hits >= Math.min(2, own.length);
      return { heading, rate: isLike ? hits * (0.2 + hits / own.length) : 0 };
    });
    return rated.filter(({ rate }) => rate > 0.5).sort((a, b) => b.rate - a.rate).slice(0, 3);
  };
  const show = (found, place) => {
    place.replaceChildren(
      ...found.flatMap(({ heading }) => {
        const link = document.createElement("a");
        Object.assign(link, { href: `#${heading.id}`, textContent: wordsOf(heading) });
        const advice = heading.nextElementSibling.cloneNode(true);
        return [link, advice];
      }),
    );
  };
  if (messages.length) {
    const box = document.createElement("div");
    box.className = "error-box";
    const label = document.createElement("label");
    label.textContent = "Your error, as it was printed ";
    const input = document.createElement("textarea");
    Object.assign(input, { rows: 3, placeholder: "ValueError: …", spellcheck: false });
    const answer = document.createElement("div");
    answer.setAttribute("aria-live", "polite");
    label.append(input);
    box.append(label, answer);
    document.querySelector("h1").after(box);
    const reply = () => {
      const found = find(input.value);
      show(found, answer);
      if (!found.length && input.value.trim())
        answer.textContent = "No message of this package is like it: it is Keras's, a backend's or another library's.";
    };
    input.addEventListener("input", reply);
    if (new URLSearchParams(location.search).has("h")) {
      input.value = sessionStorage.getItem("searched") || ""; // the way here was the search of the site
      reply();
    }
  }
  document.addEventListener("keyup", ({ target }) => {
    if (target.matches?.(".md-search__input")) sessionStorage.setItem("searched", target.value);
  });
}
