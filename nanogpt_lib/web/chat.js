// A conversation as tokens, as in nanogpt_lib/conversations.py; `roles` are its role tokens.
"use strict";

const is_role = (id, roles) => Object.values(roles).includes(id);

// The ids of a conversation so far ([]: none), ended, and of a further question up to the token
// that lets the model speak. The oldest turns are dropped where it is longer than `room` tokens.
function ask(history, text, tokenizer, roles, room) {
  const question = tokenizer.encode(text, false); // nobody but the program writes role tokens
  const forged = question.find((id) => is_role(id, roles));
  if (forged !== undefined) {
    throw new Error(`“${text.match(/[¶▸◂■]/)}” is a role token, which a question cannot contain.`);
  }
  let ids = history.length ? [...history] : [roles.start];
  if (history.length && ids.at(-1) !== roles.end) ids.push(roles.end); // it was stopped
  ids.push(roles.user, ...question, roles.assistant);
  while (ids.length > room) {
    const second = ids.indexOf(roles.user, 2); // where the second turn begins
    if (second < 0) throw new Error(`Your question has ${ids.length} tokens; ${room} fit.`);
    ids = [roles.start, ...ids.slice(second)];
  }
  return ids;
}

// For each token whether the reader wrote it; what leads to an answer counts as the reader's.
function asked(ids, roles) {
  let mine = true;
  return ids.map((id) => {
    const before = mine;
    if (id === roles.assistant) mine = false;
    if (id === roles.end) mine = true;
    return before;
  });
}
