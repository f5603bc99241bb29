"""Changes to a chat that is there: other versions of messages, other branches, what is deleted, what goes to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exltui.app.dialogue import Dialogue

TITLES = {
    "edit": "Another version of the message",
    "system": "System prompt of this chat",
    "note": "Note that goes in with the system prompt",
}


class Revision:
    """Works on the dialogue's chat. ``what`` says what the prompt is used for: "" for the next message, else a key of ``TITLES``."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self.what = ""
        self._id = ""
        self._put_aside = ""  # what stood in the prompt before

    # ── writing in the prompt ────────────────────────────────────────────────────────────────────────────────────────────────────

    def edit(self, id: str | None) -> bool:
        """Put a message into the prompt; what is sent next becomes another version of it. Without ``id``: the person's last one."""
        talk = self._dialogue
        if not talk.may_change():
            return False
        mine = [message.id for message in talk.conversation.path() if message.role == "user"]
        id = id if id is not None else mine[-1] if mine else None
        if id is None or id not in talk.conversation:
            talk.view.tell("There is no message to edit.")
            return False
        self._begin("edit", id, talk.conversation[id].text)
        return True

    def write(self, what: str) -> None:
        """Put the chat's system prompt or note into the prompt, to change it there."""
        conversation = self._dialogue.conversation
        self._begin(what, "", conversation.system if what == "system" else conversation.options.get("note", ""))

    def _begin(self, what: str, id: str, text: str) -> None:
        view = self._dialogue.view
        if not self.what:
            self._put_aside = view.prompt_text()
        self.what, self._id = what, id
        view.put_prompt(text)

    def leave(self) -> None:
        """The next message is a new one again, and what was written of it before is back."""
        if self.what:
            self.what = ""
            self._dialogue.view.put_prompt(self._put_aside)

    def take(self, text: str) -> None:
        """The person has finished what ``what`` says."""
        what = self.what
        self.leave()
        if what == "system":
            self.set_system(text)
        elif what == "note":
            self.set_option("note", text.strip())
        else:
            self.replace(self._id, text)

    def replace(self, id: str, text: str) -> None:
        """Another version of a message; one of the person's is answered."""
        talk = self._dialogue
        if id not in talk.conversation or not text.strip():
            return
        message = talk.conversation.edit(id, text)
        talk.records.save(talk.conversation, message)
        talk.show()
        if message.role == "user":
            talk.reply_to(message.id)

    # ── of the whole chat ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_system(self, text: str) -> None:
        """Another system prompt; the next reply is asked for with it."""
        talk = self._dialogue
        talk.conversation.system = text.strip()
        talk.records.save(talk.conversation)
        talk.view.tell("The next reply is asked for with this system prompt." if text.strip() else "No system prompt.")

    def set_option(self, name: str, value: str) -> None:
        """One of the chat's options; "" takes it away."""
        talk = self._dialogue
        if value:
            talk.conversation.options[name] = value
        else:
            talk.conversation.options.pop(name, None)
        talk.records.save(talk.conversation)

    def mark(self, id: str, *, pinned: bool = False, dropped: bool = False) -> None:
        """Have a message always (``pinned``) or never (``dropped``) go to the model; neither: as long as there is room."""
        talk = self._dialogue
        if id in talk.conversation and talk.conversation[id].state != "streaming":
            talk.records.save(talk.conversation, talk.conversation.mark(id, pinned=pinned, dropped=dropped))
            talk.show()

    # ── branches ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def step_sibling(self, id: str | None, step: int) -> str | None:
        """Show the version before or after that of message ``id`` (without it: the last fork). The version's id if there is one."""
        talk = self._dialogue
        if talk.writing is not None:
            return None
        path = talk.conversation.path()
        forks = [message for message in path if len(talk.conversation.siblings(message.id)) > 1 and id in (None, message.id)]
        if not forks:
            return None
        versions = talk.conversation.siblings(forks[-1].id)
        at = versions.index(forks[-1]) + step
        if not 0 <= at < len(versions):
            return None
        self.go_to(versions[at].id)
        return versions[at].id

    def go_to(self, id: str) -> None:
        """Read the branch of message ``id``. What is being written finds its own place, shown or not."""
        talk = self._dialogue
        if id in talk.conversation:
            talk.conversation.select(id)
            talk.records.save(talk.conversation)
            talk.show()

    def delete(self, id: str | None) -> None:
        """Take out a message and what follows; ``undo`` brings it back."""
        talk = self._dialogue
        id = id or self._last()
        if id is None or id not in talk.conversation or not talk.may_change():
            return
        deletion = talk.conversation.delete(id)
        talk.records.delete_messages(talk.conversation, deletion)
        talk.show()
        talk.view.tell(f"{len(deletion.messages)} deleted." if len(deletion.messages) > 1 else "Deleted.", "U brings it back.")

    def _last(self) -> str | None:
        """The last message; where its reply failed before a word, the message that it was to answer."""
        path = self._dialogue.conversation.path()
        if len(path) > 1 and path[-1].state == "failed" and not path[-1].text:
            return path[-2].id
        return path[-1].id if path else None

    def undo(self) -> None:
        """Bring back what was deleted last."""
        talk = self._dialogue
        deletion = talk.conversation.undo() if talk.writing is None else None
        if deletion is None:
            talk.view.tell("There is nothing to bring back.")
            return
        talk.records.restore_messages(talk.conversation, deletion)
        talk.show()
