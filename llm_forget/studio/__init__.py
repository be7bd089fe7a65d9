"""The studio: forgetting in a browser. It needs the extra ``studio``; Gradio is imported by ``llm_forget.studio.app`` only."""
