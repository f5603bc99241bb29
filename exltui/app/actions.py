"""Every action of the app. Key bindings, the palette, the slash commands and the help are all made from this table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exltui.app.keys import Action

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

CHAT, MESSAGES, CONTEXT, SAMPLER, PANES, MODELS, APP = "Chat", "Messages", "Context", "Sampler", "Panes", "Models", "App"

APP_ACTIONS = (
    Action("chat.new", "ctrl+n", "New chat", "Start an empty chat; the old one stays in the list.", CHAT, "new"),
    Action("chat.stop", "escape", "Stop or close", "Stop the reply that is being written, or close what is open.", CHAT, everywhere=False),
    Action("chat.editor", "ctrl+e", "Write in $EDITOR", "Open the prompt, or the message under the cursor, in an editor.", CHAT, "editor"),
    Action("chat.history", "ctrl+r", "Earlier prompts", "Search what you wrote in all chats.", CHAT, "history"),
    Action("chat.find", "ctrl+f", "Find in this chat", "Go to a message by its words.", CHAT, "find [WORDS]"),
    Action("chat.outline", "ctrl+t,f7", "Branches", "All branches of this chat as a tree; Enter goes to one.", CHAT, "tree"),
    Action("chat.file", "", "Attach a text file", "Put a file's text into the prompt.", CHAT, "file PATH"),
    Action("chat.title", "", "Title of this chat", "Give this chat another title.", CHAT, "title [TEXT]"),
    Action("chat.duplicate", "", "Duplicate this chat", "Copy this chat with all its branches.", CHAT, "duplicate"),
    Action("chat.export", "", "Export this chat", "Write this chat to a file: .md, .html or .json.", CHAT, "export [FILE]"),
    Action("chat.import", "", "Import a chat", "Read a chat that was exported as JSON.", CHAT, "import FILE"),
    Action("message.up", "alt+up", "Message above", "Put the message cursor one higher.", MESSAGES),
    Action("message.down", "alt+down", "Message below", "Put the message cursor one lower.", MESSAGES),
    Action("message.previous", "alt+left", "Previous version", "Show the version before this one.", MESSAGES),
    Action("message.next", "alt+right", "Next version", "Show the version after this one.", MESSAGES),
    Action("message.prefill", "", "Begin the reply", "Say how the next reply begins.", MESSAGES, "prefill [TEXT]"),
    Action("message.candidates", "", "Several replies at once", "N replies side by side; all are kept.", MESSAGES, "candidates [N]"),
    Action("message.compare", "", "Compare two presets", "Two replies side by side, each with its preset.", MESSAGES, "compare [A B]"),
    Action("chat.context", "f6", "Context", "What goes to the model, by message: pin, drop, summarise.", CONTEXT, "context"),
    Action("chat.system", "", "System prompt", "Change the system prompt of this chat.", CONTEXT, "system [TEXT]"),
    Action("chat.library", "", "System prompts", "Choose a system prompt from your own, or keep this one.", CONTEXT, "systems"),
    Action("chat.note", "", "Note of this chat", "Change the note that goes in with the system prompt.", CONTEXT, "note"),
    Action("chat.summarise", "", "Summarise", "Put a summary of the older messages into the note.", CONTEXT, "summarise"),
    Action("chat.thinking", "", "Thinking", "Whether the model is to think, if its template can say so.", CONTEXT, "thinking on|off|auto"),
    Action("chat.thoughts", "", "Thoughts in the context", "Whether earlier thoughts are sent again.", CONTEXT, "thoughts keep|strip"),
    Action("chat.format", "", "Prompt format", "A format by name instead of the model's own template.", CONTEXT, "format [NAME]"),
    Action("chat.doctor", "f8", "Template doctor", "The exact prompt, its special tokens, and what is wrong with it.", CONTEXT, "template"),
    Action("sampler.presets", "", "Sampler presets", "Apply a preset, see how it differs, or delete it.", SAMPLER, "preset [NAME]"),
    Action("sampler.save", "", "Save a sampler preset", "Keep the sampler's settings under a name.", SAMPLER, "save-preset [NAME]"),
    Action("sampler.bias", "", "Bias and bans", "Make words likelier, less likely, or impossible.", SAMPLER, "bias [WORDS]"),
    Action("sampler.set", "", "Set a sampler value", "For example /set top_k 40.", SAMPLER, "set NAME VALUE", palette=False),
    Action("pane.sessions", "ctrl+o,f5", "Sessions", "All chats: open, search, rename, delete.", PANES, "sessions"),
    Action("pane.sampler", "ctrl+s,f2", "Sampler", "How the next reply is drawn.", PANES, "sampler"),
    Action("pane.devices", "ctrl+d,f4", "Devices", "Memory and load of each device.", PANES, "devices"),
    Action("models.loader", "ctrl+l,f3", "Models", "Load, unload or download a model.", MODELS, "models"),
    Action("models.unload", "", "Unload the model", "Give its memory back.", MODELS, "unload"),
    Action("app.theme", "", "Theme", "Choose how the app looks; it changes while you choose.", APP, "theme [NAME]"),
    Action("app.settings", "f9", "Settings", "Change the settings file on a form.", APP, "settings"),
    Action("app.help", "f1", "Help", "The keys of the pane that has the focus.", APP, "help"),
    Action("app.palette", "ctrl+p", "Commands", "Every action by its name.", APP, palette=False),
    Action("app.interrupt", "ctrl+c", "Copy or stop", "Copy what is selected, or stop; twice quits.", APP, palette=False),
    Action("app.quit", "ctrl+q", "Quit", "Leave; a reply that is being written is saved.", APP, "quit"),
)  # fmt: skip

MESSAGE_ACTIONS = (
    Action("message.copy", "y", "Copy", "Copy the message; after a digit, that code block.", MESSAGES, "copy [N]", everywhere=False),
    Action("message.edit", "e", "Edit", "Write the message anew as a branch; the old one stays.", MESSAGES, "edit", everywhere=False),
    Action("message.regenerate", "r", "Regenerate", "Another reply; the old one stays.", MESSAGES, "regenerate", everywhere=False),
    Action("message.continue", "c", "Continue", "Have the last reply go on where it ends.", MESSAGES, "continue", everywhere=False),
    Action("message.delete", "d", "Delete", "Take it and what follows out (u brings it back).", MESSAGES, "delete", everywhere=False),
    Action("message.undo", "u", "Undo", "Bring back what was deleted last.", MESSAGES, "undo", everywhere=False),
    Action("message.thoughts", "t", "Thoughts", "Show the thoughts of a reply, or fold them.", MESSAGES, everywhere=False),
    Action("message.pager", "v", "View in $PAGER", "Read the message in your pager.", MESSAGES, "pager", everywhere=False),
    Action("message.pin", "p", "Pin", "Have the message always sent, or no longer.", MESSAGES, everywhere=False),
    Action("message.drop", "x", "Do not send", "Leave the message out of what is sent, or take it in again.", MESSAGES, everywhere=False),
    Action("message.above", "k", "Message above", "", MESSAGES, everywhere=False, palette=False),
    Action("message.below", "j", "Message below", "", MESSAGES, everywhere=False, palette=False),
    Action("message.left", "left_square_bracket", "Previous version", "", MESSAGES, everywhere=False, palette=False),
    Action("message.right", "right_square_bracket", "Next version", "", MESSAGES, everywhere=False, palette=False),
)  # fmt: skip

ALL = (*APP_ACTIONS, *MESSAGE_ACTIONS)
BY_ID = {action.id: action for action in ALL}
COMMANDS = {action.command: action for action in ALL if action.slash}

# What each does. The text is what stands behind the slash command, "" from a key or the palette.
DO: dict[str, Callable[[ExltuiApp, str], object]] = {
    "chat.new": lambda app, text: app.new_chat(),
    "chat.stop": lambda app, text: app.escape(),
    "chat.editor": lambda app, text: app.messages.edit_outside(),
    "chat.history": lambda app, text: app.messages.history(),
    "chat.find": lambda app, text: app.messages.find(text),
    "chat.outline": lambda app, text: app.messages.outline(),
    "chat.file": lambda app, text: app.messages.attach(text),
    "chat.title": lambda app, text: app.chats.retitle(text),
    "chat.duplicate": lambda app, text: app.chats.duplicate(),
    "chat.export": lambda app, text: app.chats.export(text),
    "chat.import": lambda app, text: app.chats.import_file(text),
    "message.up": lambda app, text: app.messages.move(-1),
    "message.down": lambda app, text: app.messages.move(1),
    "message.previous": lambda app, text: app.messages.sibling(-1),
    "message.next": lambda app, text: app.messages.sibling(1),
    "message.prefill": lambda app, text: app.messages.prefill(text),
    "message.candidates": lambda app, text: app.messages.candidates(text),
    "message.compare": lambda app, text: app.presets.compare(text),
    "chat.context": lambda app, text: app.context.open(),
    "chat.system": lambda app, text: app.messages.system(text),
    "chat.library": lambda app, text: app.context.library(),
    "chat.note": lambda app, text: app.messages.note(),
    "chat.summarise": lambda app, text: app.context.summarise(),
    "chat.thinking": lambda app, text: app.context.option("thinking", text),
    "chat.thoughts": lambda app, text: app.context.option("thoughts", text),
    "chat.format": lambda app, text: app.context.choose_format(text),
    "chat.doctor": lambda app, text: app.context.doctor(),
    "sampler.presets": lambda app, text: app.presets.choose(text),
    "sampler.save": lambda app, text: app.presets.save(text),
    "sampler.bias": lambda app, text: app.presets.bias(text),
    "sampler.set": lambda app, text: app.presets.set_value(text),
    "pane.sessions": lambda app, text: app.show_pane("sessions"),
    "pane.sampler": lambda app, text: app.show_pane("sampler"),
    "pane.devices": lambda app, text: app.show_pane("devices"),
    "models.loader": lambda app, text: app.toggle_loader(),
    "models.unload": lambda app, text: app.desk.unload(),
    "app.theme": lambda app, text: app.looks.choose_theme(text),
    "app.settings": lambda app, text: app.looks.settings(),
    "app.help": lambda app, text: app.help(),
    "app.palette": lambda app, text: app.action_command_palette(),
    "app.interrupt": lambda app, text: app.interrupt(),
    "app.quit": lambda app, text: app.exit(),
    "message.copy": lambda app, text: app.messages.copy(text),
    "message.edit": lambda app, text: app.messages.edit(),
    "message.regenerate": lambda app, text: app.messages.regenerate(),
    "message.continue": lambda app, text: app.messages.go_on(),
    "message.delete": lambda app, text: app.messages.delete(),
    "message.undo": lambda app, text: app.messages.undo(),
    "message.thoughts": lambda app, text: app.messages.fold(),
    "message.pager": lambda app, text: app.messages.page(),
    "message.pin": lambda app, text: app.messages.pin(),
    "message.drop": lambda app, text: app.messages.drop(),
    "message.above": lambda app, text: app.messages.move(-1),
    "message.below": lambda app, text: app.messages.move(1),
    "message.left": lambda app, text: app.messages.sibling(-1),
    "message.right": lambda app, text: app.messages.sibling(1),
}
