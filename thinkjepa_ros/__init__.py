__path__ = __import__("pkgutil").extend_path(__path__, __name__)  # the generated messages lie in another folder
