from maskedlab import _modules_of

__getattr__ = _modules_of(__name__)
