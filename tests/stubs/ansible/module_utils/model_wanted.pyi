from model_wanted import *
