"""The entry point of lmms-eval. Every start of lmms-eval imports this file, so it imports nothing else of ours."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="hippo", chat_class_path="hippo.lmms.model.Hippo")
