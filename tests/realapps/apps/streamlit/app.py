import hashlib

import streamlit as st
from openai import OpenAI

st.title("A page")
name = st.text_input("Name", "nobody")
st.write(f"Hello, {name}")
st.line_chart({"a": [1, 3, 2, 4]})
file = st.file_uploader("File")
if file is not None:
    st.write(f"sha256 {hashlib.sha256(file.getvalue()).hexdigest()}")
if st.button("Ask"):
    said = OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": name}])
    st.write(f"Answer: {said.choices[0].message.content}")
