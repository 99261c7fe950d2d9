"""Data of all tasks: what is read from files, drawn or composed, and how batches of it come.

Images are read by `images`, boxes of faces by `face_boxes`, English by `text`; nothing inflates without a limit
(`inflating`). `photographs` come with the wheels of others, `scenes` are drawn and `faces` composed by the lab itself.
`batches` shuffles and augments them. Nobody here knows a network; the tasks above hold both together.
"""
