"See, touch, train and compare masked modeling."
__version__ = "0.1.0"
