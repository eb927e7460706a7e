"""The models that come with stapes; :mod:`stapes.catalogue` finds them by name."""
