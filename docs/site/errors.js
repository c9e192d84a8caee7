/* A box on the errors page that finds a pasted error among the messages, which are its small headings.
   What the program had filled in is no part of a heading, so words and pairs of words are compared: most of
   the right message's are in what was pasted, wherever values stand between them. */
{
  const messages = [...document.querySelectorAll("h3.message")];
  // Words and pairs of neighbouring words. A pair is no accident, so it counts more.
  const features = (text) => {
    const words = text.toLowerCase().match(/[\p{L}\d_]+|…/gu) || [];
    const pairs = words.slice(1).map((word, i) => `${words[i]} ${word}`);
    return [...words, ...pairs].filter((feature) => !feature.includes("…"));
  };
  const weigh = (found) => found.reduce((sum, feature) => sum + (feature.includes(" ") ? 1 : 0.3), 0);
  const wordsOf = (heading) => heading.textContent.replace("¶", "").trim();
  const find = (text) => {
    const given = new Set(features(text));
    const all = weigh([...given]);
    const rated = messages.map((heading) => {
      const own = features(wordsOf(heading));
      const hits = weigh(own.filter((feature) => given.has(feature)));
      const part = Math.max(hits / weigh(own), hits / all); // of the message, or of words from a part of it
      return { heading, part, rate: hits * (0.2 + part) };
    });
    return rated.filter(({ part, rate }) => (part > 0.6 && rate > 1) || rate > 2).sort((a, b) => b.rate - a.rate).slice(0, 3);
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
  // The search of the site takes minutes for a traceback, each of whose words may begin many others.
  document.querySelector(".md-search__input")?.setAttribute("maxlength", "200");
  document.addEventListener("keyup", ({ target }) => {
    if (target.matches?.(".md-search__input")) sessionStorage.setItem("searched", target.value);
  });
}
